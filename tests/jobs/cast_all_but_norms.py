"""All of a model in bfloat16 but its norms."""

import torch

import sdtree as sd
from sdtree.io import convert_file

norms = sd.selector("**.*norm.*")
convert_file(
    "model.safetensors",
    "half.safetensors",
    sd.where(~norms, sd.cast(dtype=torch.bfloat16)),
)
