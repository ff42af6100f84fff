"""The names of all tensors that hold a NaN or an infinity."""

import torch

import sdtree as sd

state = sd.load("train.pt")

bad = sd.selector(torch.Tensor) & (lambda path, x: not x.isfinite().all())
print(sd.names(sd.select(state, bad, missing_ok=True)))
