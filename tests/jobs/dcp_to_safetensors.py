"""The model in a directory of torch.distributed.checkpoint as one bfloat16 file."""

import torch

import sdtree as sd

model = sd.select("model.**") | sd.strip_prefix("model") | sd.cast(dtype=torch.bfloat16)
sd.convert_file("step_100", "model.safetensors", model)
