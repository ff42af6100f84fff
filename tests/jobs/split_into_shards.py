"""The model in a file of ``torch.save`` as a folder that transformers opens."""

import sdtree as sd

model = sd.select("model.**") | sd.strip_prefix("model")
sd.convert_file("train.pt", "folder", model, shard_bytes="5GB")
