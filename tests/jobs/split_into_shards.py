"""The model in a file of ``torch.save`` as a folder that transformers opens."""

import sdtree as sd
from sdtree.io import convert_file

model = sd.select("model.**") | sd.strip_prefix("model")
convert_file("train.pt", "folder", model, shard_bytes="5GB")
