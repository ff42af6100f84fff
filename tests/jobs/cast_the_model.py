"""A training state with the model in bfloat16 and the optimizer as it is."""

import torch

import sdtree as sd

state = sd.load("train.pt")

half = sd.where(state, "model.**", sd.cast(dtype=torch.bfloat16))
sd.save(half, "half.pt")
