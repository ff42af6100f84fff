"""How many bytes of the storages that a run makes are alive at a time."""

import torch
from oracle import data_of
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdtree as sd


class Alive(TorchDispatchMode):
    """Notes the storages of what operations return, but those of given trees.

    Those of numbers, as torch has them within, are not counted.

    ``most`` are the bytes of the most that were alive after an operation.
    """

    def __init__(self, *given):
        super().__init__()
        leaves = [x for tree in given for x in sd.leaves(tree)]
        self.given = {_key(t) for x in leaves for t in data_of(x)}
        self.found, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in [x for x in tree_leaves(made) if type(x) is torch.Tensor]:
            known = self.given | self.found.keys()
            if not t.is_meta and t.dim() and _key(t) not in known:
                storage = t.untyped_storage()
                self.found[_key(t)] = StorageWeakRef(storage), storage.nbytes()
        pairs = self.found.items()
        self.found = {k: (ref, n) for k, (ref, n) in pairs if not ref.expired()}
        self.most = max(self.most, sum(n for _, n in self.found.values()))
        return made


def _key(t):
    return t.untyped_storage()._cdata


def most_alive(work, *given):
    """Return the most bytes that work makes and has at a time."""
    with Alive(*given) as alive:
        result = work()
    del result
    return alive.most


def drained(stream):
    """Let go of what is yielded, one by one."""
    for _, leaf in stream:
        del leaf
