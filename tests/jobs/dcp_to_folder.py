"""A directory of torch.distributed.checkpoint as a Hugging Face folder."""

import sdtree as sd

model = sd.select("model.**") | sd.strip_prefix("model")
sd.convert_file("step_100", "folder", model, shard_bytes="5GB")
