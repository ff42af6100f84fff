"""The small transformer of the demo, and how it is trained."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

VOCABULARY = 64
RATE = 3e-3


class Transformer(nn.Module):
    """A transformer that tells the next token; embedding and head share a weight."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True
        )
        self.embedding = nn.Embedding(VOCABULARY, width)
        nn.init.normal_(self.embedding.weight, std=0.2)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.encoder(self.embedding(tokens), mask, is_causal=True))


def sentences(seed: int, count: int = 16, length: int = 24) -> Tensor:
    """Return sequences in which each token follows from the one before it."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(VOCABULARY, (count,), generator=generator)]
    for _ in range(length - 1):
        tokens.append((5 * tokens[-1] + 3) % VOCABULARY)
    return torch.stack(tokens, dim=1)


def loss_on(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return how badly the model foretells each token from those before it."""
    foretold = model(tokens[:, :-1])
    return F.cross_entropy(foretold.flatten(0, 1), tokens[:, 1:].flatten())


@contextmanager
def one_thread() -> Generator[None]:
    """Have torch work in one thread: for a model this small, more are in the way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def loss_of(model: nn.Module) -> float:
    """Return the loss on sequences that training does not see, always the same."""
    with torch.no_grad(), one_thread():
        return loss_on(model, sentences(seed=-1)).item()


def train(steps: int) -> tuple[Transformer, AdamW]:
    """Return a trained model and its optimizer, each time the same."""
    model = untrained(seed=0)
    optimizer = AdamW(model.parameters(), lr=RATE)
    go_on(model, optimizer, range(steps))
    return model, optimizer


def untrained(seed: int) -> Transformer:
    """Return a model as it is before training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer()


def go_on(model: nn.Module, optimizer: AdamW, seeds: Iterable[int]) -> None:
    """Train a model for a step on the sequences of each seed."""
    with one_thread():
        for seed in seeds:
            optimizer.zero_grad()
            loss_on(model, sentences(seed)).backward()
            optimizer.step()
