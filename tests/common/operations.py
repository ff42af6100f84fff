"""Every operation of one process on one tree, or on two of one form, by a name."""

import torch

import sdtree as sd

OPERATIONS = {
    "copy": lambda t: sd.copy(t),
    "copy in windows": lambda t: dict(sd.copy().stream(t)),
    "offload": lambda t: sd.offload(t, share=True),
    "to": lambda t: sd.to(t, "cpu"),
    "cast": lambda t: sd.cast(t, dtype=torch.float64),
    "cast like": lambda t: sd.cast(t, like=sd.spec(t)),
    "empty_like": lambda t: sd.spec(sd.empty_like(t)),
    "into": lambda t: sd.copy(t, into=sd.empty_like(t)),
    "chain": lambda t: (sd.copy() | sd.copy(into=sd.empty_like(t)))(t),
    "wait": lambda t: sd.wait(t),
    "spec": lambda t: sd.spec(t),
    "nbytes": lambda t: sd.nbytes(t),
    "ties": lambda t: sd.ties(t),
    "show": lambda t: str(sd.show(t)),
    "explain": lambda t: str(sd.explain(sd.copy() | sd.gather(), t)),
    "equal": lambda t: sd.equal(t, sd.copy(t)),
    "similar": lambda t: sd.similar(t, sd.copy(t)),
    "similar to another": lambda t, other: sd.similar(t, other),
    "diff": lambda t, other: str(sd.diff(t, other)),
    "gather": lambda t: sd.gather(t),
    "distribute": lambda t: sd.distribute(t, like=t),
    "redistribute": lambda t: sd.redistribute(t, like=t),
    "flatten": lambda t: sd.unflatten(sd.flatten(t), spec=sd.structure(t)),
    "select": lambda t: sd.select(t, torch.Tensor, missing_ok=True),
}
