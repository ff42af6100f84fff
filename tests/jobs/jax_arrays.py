"""Arrays of jax as leaves, over the memory that they have."""

import jax
import torch

import sdtree as sd

sd.register_leaf(
    type(jax.numpy.zeros(0)),
    flatten=lambda x: ((torch.from_dlpack(x),), None),
    unflatten=lambda _, tensors: jax.dlpack.from_dlpack(tensors[0]),
)
