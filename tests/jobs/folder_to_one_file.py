"""A folder of Hugging Face shards as one file, and as a folder again."""

import sdtree as sd

sd.save(sd.load("llama", mmap=True), "llama.safetensors")
sd.save(sd.load("llama.safetensors", mmap=True), "again", shard_bytes="5GB")
