"""Small models in training, sharded in the ways that people do it.

What is here runs on every rank of a pool, or under torchrun, and comes to the same
whatever the mesh, but for rounding::

    model, optimizer = build(FSDP)
    state = state_of(model, optimizer)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from ranks import mesh
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

# -- models: each has a loss on a batch that a seed makes --------------------------


class Transformer(nn.Module):
    """A transformer whose embedding and head are one weight."""

    def __init__(self, vocabulary: int = 10, width: int = 8, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)))

    def loss(self, seed: int) -> Tensor:
        vocabulary = self.embedding.num_embeddings
        tokens = torch.randint(vocabulary, (4, 6), generator=_generator(seed))
        return F.cross_entropy(self(tokens).flatten(0, 1), tokens.flatten())


class Perceptron(nn.Module):
    """Two blocks of width 6, whose hidden layers have 7 and 5 units."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(6, hidden) for hidden in (7, 5))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x

    def loss(self, seed: int) -> Tensor:
        x = torch.randn(4, 6, generator=_generator(seed))
        return F.mse_loss(self(x), x.roll(1, dims=1))


class Block(nn.Module):
    """A hidden layer, and a way back to the width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Normed(Perceptron):
    """A perceptron with a norm before it and a head after, outside of any plan."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(self.norm(x)))

    def loss(self, seed: int) -> Tensor:
        x = torch.randn(4, 6, generator=_generator(seed))
        return F.mse_loss(self(x), x[:, :5].roll(1, dims=1))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- trainings ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """What makes a model, and the mesh that it is sharded over.

    A dimension named ``"tp"`` has tensor parallelism, for a perceptron; the others
    have FSDP, and HSDP if they are two. Without dimensions nothing is sharded.
    """

    make: Callable[[], Any]
    sizes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def on(self, sizes: tuple[int, ...], names: tuple[str, ...]) -> "Training":
        """Return the same training on another mesh."""
        return replace(self, sizes=sizes, names=names)


FSDP = Training(Transformer, (4,), ("dp",))
EMPTY_SHARDS = replace(FSDP, make=partial(Transformer, vocabulary=3))
HSDP = FSDP.on((2, 2), ("replicas", "dp"))
TP = Training(Perceptron, (4,), ("tp",))
FSDP_TP = TP.on((2, 2), ("dp", "tp"))
FSDP_PARTLY_TP = replace(FSDP_TP, make=Normed)
TRAININGS = {
    "fsdp": FSDP,
    "empty_shards": EMPTY_SHARDS,
    "hsdp": HSDP,
    "tp": TP,
    "fsdp_tp": FSDP_TP,
    "fsdp_partly_tp": FSDP_PARTLY_TP,
}
every_training = pytest.mark.parametrize(
    "training", TRAININGS.values(), ids=TRAININGS.keys()
)


def build(
    training: Training, *, steps: int = 2, seed: int = 0
) -> tuple[Any, Optimizer]:
    """Return a sharded model that was trained for some steps, and its optimizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = training.make()
    if training.names:
        _shard(model, mesh(training.sizes, training.names))
    one_mesh = training.make is not Normed  # of which foreach kernels need one
    optimizer = AdamW(model.parameters(), lr=1e-2, foreach=one_mesh)
    train(model, optimizer, steps, seed)
    return model, optimizer


def fresh(training: Training, *, seed: int = 1) -> tuple[Any, Optimizer]:
    """Return another model of the kind, untrained, and an optimizer that has state."""
    model, optimizer = build(training, steps=0, seed=seed)
    get_optimizer_state_dict(model, optimizer)  # makes the state that is not there yet
    return model, optimizer


def train(model: Any, optimizer: Optimizer, steps: int, seed: int) -> list[float]:
    """Train for some steps, and return the loss before each."""
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.loss(seed + step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def loss_of(model: Any) -> float:
    """Return the loss on a batch that training does not see, always the same."""
    with torch.no_grad():
        return model.loss(seed=-1).item()


def state_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return what a checkpoint of a training holds."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def _shard(model: nn.Module, over: DeviceMesh) -> None:
    """Shard a model in place."""
    if "tp" in over.mesh_dim_names:
        up = ColwiseParallel(use_local_output=False)  # which keeps its uneven shape
        plan = {"blocks.*.up": up, "blocks.*.down": RowwiseParallel()}
        parallelize_module(model, over["tp"], plan)
    names = tuple(name for name in over.mesh_dim_names if name != "tp")
    if names:
        for part in model.modules():
            if isinstance(part, nn.TransformerEncoderLayer):
                fully_shard(part, mesh=over[names])
        fully_shard(model, mesh=over[names])
