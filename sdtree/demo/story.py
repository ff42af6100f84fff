"""The story of the demo: first in one process, then on several ranks."""

from __future__ import annotations

from dataclasses import dataclass

SCRIPT = "ranks.py"


@dataclass(frozen=True, slots=True)
class Step:
    """What happens, the command that does it, and the lines of Python that do."""

    title: str
    python: str
    command: str = ""


ALONE = (
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


TOGETHER = (
    Step(
        "Train it anew under FSDP2, on several ranks. Each has its shards of the model "
        "and of the optimizer, and learns from sequences of its own. The lines from "
        f"here on are a script as well: torchrun --nproc-per-node 2 {SCRIPT}",
        """\
import torch
import sdtree as sd
from sdtree.demo import loss_of
from sdtree.demo.measuring import moved, side_by_side, torchs
from sdtree.demo.sharding import in_line, in_rows, join, sharded
from sdtree.demo.sharding import go_on_together, state_of
from sdtree.wire.collectives import record
rank = join()
mesh = in_line()
model, optimizer = sharded(mesh)
go_on_together(model, optimizer, range(20))
state = state_of(model, optimizer)
print(f"mesh {tuple(mesh.shape)}, loss {loss_of(model):.3f}")
""",
    ),
    Step(
        "Gather model and optimizer on rank 0, which writes them. The two transforms "
        "are one. What each rank sent and received:",
        """\
whole_on_0 = sd.gather(ranks=0) | sd.offload()
with record() as traffic:
    checkpoint = whole_on_0(state)
if rank == 0:
    sd.save(checkpoint, "sharded.safetensors")
print(moved(traffic))
""",
    ),
    Step(
        "Another training, from another seed and over another mesh, takes over. Rank 0 "
        "alone reads the file; each rank receives its shards, where they belong. (The "
        "one step makes the state of the optimizer, to be overwritten.)",
        """\
mesh = in_rows()
other, its_optimizer = sharded(mesh, seed=1)
go_on_together(other, its_optimizer, range(1))
target = state_of(other, its_optimizer)
print(f"mesh {tuple(mesh.shape)}, loss {loss_of(other):.3f} so far")
loaded = sd.load("sharded.safetensors") if rank == 0 else None
with record() as traffic:
    sd.broadcast(loaded, into=target)
print(f"loss {loss_of(other):.3f} then\\n")
print(moved(traffic))
""",
    ),
    Step(
        "Both go on, the one that was interrupted as if it had not been.",
        """\
for step in range(20, 24):
    go_on_together(model, optimizer, range(step, step + 1))
    go_on_together(other, its_optimizer, range(step, step + 1))
    losses = loss_of(model), loss_of(other)
    print("step {}: loss {:.9f}, by way of the file {:.9f}".format(step, *losses))
    assert losses[0] == losses[1]
""",
    ),
    Step(
        "How long do torch's own functions take, which are private, for the same? "
        "Medians of a few calls by turns, on the slowest rank; the tensors are small.",
        """\
full, flat = sd.flatten(checkpoint), sd.flatten(target)
gather = torchs("_gather_state_dict", state, cpu_offload=True, ranks_only=(0,))
broadcast = torchs("_broadcast_state_dict", full, flat, torch.device("cpu"))
table = side_by_side(
    gather=(lambda: whole_on_0(state), gather),
    broadcast=(lambda: sd.broadcast(loaded, into=target), broadcast),
)
print(table)
""",
    ),
)
