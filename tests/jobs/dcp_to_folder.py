"""A directory of torch.distributed.checkpoint as a Hugging Face folder."""

import sdtree as sd
from sdtree.io import convert_file

model = sd.select("model.**") | sd.strip_prefix("model")
convert_file("step_100", "folder", model, shard_bytes="5GB")
