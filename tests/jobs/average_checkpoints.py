"""The mean of three checkpoints, a soup."""

import torch

import sdtree as sd

runs = [sd.load(f"run_{k}.safetensors") for k in range(3)]

soup = sd.map(lambda *xs: torch.stack(xs).float().mean(0).to(xs[0].dtype), *runs)
sd.save(soup, "soup.safetensors")
