"""A model under FSDP2 as one bfloat16 file, written by rank 0."""

import torch
import torch.distributed as dist
from training import model

import sdtree as sd

whole = (sd.cast(dtype=torch.bfloat16) | sd.gather(ranks=0))(model.state_dict())
if dist.get_rank() == 0:
    sd.save(whole, "model.safetensors")
