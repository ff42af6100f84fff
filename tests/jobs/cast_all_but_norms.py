"""All of a model in bfloat16 but its norms."""

import torch

import sdtree as sd

norms = sd.selector("**.*norm.*")
sd.convert_file(
    "model.safetensors",
    "half.safetensors",
    sd.where(~norms, sd.cast(dtype=torch.bfloat16)),
)
