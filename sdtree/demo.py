"""``sdtree demo``: the checkpoint of a small transformer, from training and back."""

from __future__ import annotations

import shlex
import tempfile
import textwrap
from collections.abc import Callable, Generator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 64
IN_PYTHON = "# in Python"

Run = Callable[[Sequence[str]], int]
"""Runs the command line with these arguments and returns its exit code."""


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


def train(steps: int) -> tuple[Transformer, torch.optim.AdamW]:
    """Return a trained model and its optimizer, each time the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with one_thread():
        for seed in range(steps):
            optimizer.zero_grad()
            loss_on(model, sentences(seed)).backward()
            optimizer.step()
    return model, optimizer


# -- the story ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """What happens, the command that does it, and the lines of Python that do."""

    title: str
    python: str
    command: str = ""


STEPS = (
    Step(
        "Train a small transformer whose embedding and head are one weight, and save "
        "the model, the optimizer and the step.",
        """\
import torch
import sdtree as sd
from sdtree.demo import Transformer, loss_of, train
fresh, _ = train(steps=0)
model, optimizer = train(steps=40)
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
sd.save({**state, "step": 40}, "checkpoint.pt")
print(f"loss {loss_of(fresh):.3f} before, {loss_of(model):.3f} after")
""",
    ),
    Step(
        "Look at the part that is the model. The embedding and the head share memory.",
        """\
print(sd.show(sd.select(sd.load("checkpoint.pt"), "model.**")))
""",
        "sdtree show checkpoint.pt --select 'model.**'",
    ),
    Step(
        "Write everything as safetensors: int keys, tuples, floats and the tie too.",
        """\
sd.save(sd.load("checkpoint.pt"), "checkpoint.safetensors")
""",
        "sdtree convert checkpoint.pt checkpoint.safetensors",
    ),
    Step(
        "Compare the two files, values and all.",
        """\
print(sd.diff(sd.load("checkpoint.pt"), sd.load("checkpoint.safetensors")))
""",
        "sdtree diff checkpoint.pt checkpoint.safetensors --values",
    ),
    Step(
        "Keep the model alone, at half the size, with its encoder under another name. "
        "The three transforms are one, and the file streams through it.",
        """\
small = (
    sd.select("model.**")
    | sd.rename(("model.encoder.layers.**", "model.blocks.**"))
    | sd.cast(dtype=torch.bfloat16)
)
sd.save(small(sd.load("checkpoint.pt")), "small.safetensors")
""",
        "sdtree convert checkpoint.pt small.safetensors --select 'model.**' "
        "--rename 'model.encoder.layers.**=model.blocks.**' --cast bfloat16",
    ),
    Step(
        "Go back to the old names and to float32.",
        """\
back = (
    sd.rename(("model.blocks.**", "model.encoder.layers.**"))
    | sd.cast(dtype=torch.float32)
)
sd.save(back(sd.load("small.safetensors")), "back.pt")
""",
        "sdtree convert small.safetensors back.pt "
        "--rename 'model.blocks.**=model.encoder.layers.**' --cast float32",
    ),
    Step(
        "What has rounding to bfloat16 cost?",
        """\
model_of = sd.select("model.**")
print(sd.diff(model_of(sd.load("checkpoint.pt")), model_of(sd.load("back.pt"))))
""",
        "sdtree diff checkpoint.pt back.pt --select 'model.**' --values",
    ),
    Step(
        "Load what was saved into new models: from the first conversion the loss is "
        "the very same, from the second nearly.",
        """\
exact, rounded = Transformer(), Transformer()
exact.load_state_dict(sd.load("checkpoint.safetensors")["model"])
rounded.load_state_dict(sd.load("back.pt")["model"])
assert loss_of(exact) == loss_of(model)
print(f"trained {loss_of(model):.6f}, reloaded {loss_of(exact):.6f}")
print(f"by way of bfloat16 {loss_of(rounded):.6f}")
""",
    ),
)


def play(folder: Path | None, run: Run) -> None:
    """Run all steps in a folder, telling each, its command and its lines of Python."""
    folder = folder or Path(tempfile.mkdtemp(prefix="sdtree-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"cd {shlex.quote(str(folder.resolve()))}")
    names: dict[str, Any] = {}
    with chdir(folder):
        for i, step in enumerate(STEPS, 1):
            print(f"\n{textwrap.fill(f'-- {i}. {step.title}', 80)}\n")
            _tell(step, names, run)


def _tell(step: Step, names: dict[str, Any], run: Run) -> None:
    """Print a step and do it: by its command, or else by its lines of Python."""
    if step.command:
        print(f"$ {step.command}", flush=True)
        run(shlex.split(step.command)[1:])
        print(f"\n{IN_PYTHON}\n{step.python}", end="")
    else:
        print(f"{IN_PYTHON}\n{step.python}")
        exec(step.python, names)
