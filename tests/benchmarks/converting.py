"""The rows of conversion: the same by torch's own expression and by a rule."""

import re
from functools import partial

import torch
import torch.distributed as dist
from ranks import mesh
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from benchmarks.race import Row, Runners, Work, race, row_of
from benchmarks.speed import beside_torch
from benchmarks.world import race_of_ranks

EXPERT = "layers.{l}.experts.{e}"


def stack_and_fuse(tiny: bool) -> Runners:
    """Two projections of 16 experts, 176 MiB, as one tensor."""
    count, rows, columns = (2, 8, 4) if tiny else (16, 1408, 1024)
    tree = {
        f"experts.{e}.{name}": torch.randn(rows, columns)
        for e in range(count)
        for name in ("gate", "up")
    }
    rule = sd.rule(
        ["experts.{e}.gate [f c]", "experts.{e}.up [g c]"],
        "experts.gate_up [e (f + g) c]",
    )
    each = [
        [tree[f"experts.{e}.{name}"] for e in range(count)] for name in ("gate", "up")
    ]
    flat = torch.ones(2 * count * rows * columns)
    return {
        "torch": lambda: torch.cat([torch.stack(ts) for ts in each], 1),
        "ours": lambda: sd.convert(tree, rule),
        "flat copy": lambda: flat.clone(),
    }


def rope(tiny: bool) -> Runners:
    """The rows of a projection of 64 MiB, with the halves of each head apart."""
    heads, half, columns = (2, 2, 4) if tiny else (32, 64, 4096)
    w = torch.randn(heads * 2 * half, columns)
    rule = sd.rule("w [(h two d) c]", "w [(h d two) c]", h=heads, two=2)
    flat = torch.ones(w.numel())
    return {
        "torch": lambda: w.view(heads, 2, half, -1).transpose(1, 2).reshape(w.shape),
        "ours": lambda: sd.convert({"w": w}, rule),
        "flat copy": lambda: flat.clone(),
    }


def _fusing(groups: int, d: int) -> sd.Rule:
    """Return the rule that puts three projections together, group by group."""
    return sd.rule(
        ["q [(g h d) c]", "k [(g k d) c]", "v [(g v d) c]"],
        "qkv [(g (h + k + v) d) c]",
        g=groups,
        k=1,
        v=1,
        d=d,
    )


def queries_keys_values(tiny: bool) -> Runners:
    """Three projections, 96 MiB, as one whose heads stand in groups."""
    groups, d, columns = (2, 2, 4) if tiny else (8, 128, 4096)
    counts = {"q": 4, "k": 1, "v": 1}
    tree = {n: torch.randn(groups * k * d, columns) for n, k in counts.items()}
    rule = _fusing(groups, d)
    flat = torch.ones(sum(t.numel() for t in tree.values()))

    def by_torch() -> torch.Tensor:
        parts = [t.view(groups, -1, d, columns) for t in tree.values()]
        return torch.cat(parts, 1).reshape(-1, columns)

    return {
        "torch": by_torch,
        "ours": lambda: sd.convert(tree, rule),
        "flat copy": lambda: flat.clone(),
    }


def in_a_row(tiny: bool) -> Runners:
    """Two projections, 64 MiB, with the halves of each head apart, and then as one.

    torch permutes each, and puts them together.
    """
    heads, half, columns = (2, 2, 4) if tiny else (16, 64, 4096)
    tree = {n: torch.randn(heads * 2 * half, columns) for n in ("q", "k")}
    dims = [f"{n} [(h two d) c]" for n in tree], [f"{n} [(h d two) c]" for n in tree]
    each = [sd.rule(*pair, h=heads, two=2) for pair in zip(*dims, strict=True)]
    fuse = sd.rule(["q [a c]", "k [b c]"], "qk [(a + b) c]")
    both = sd.convert(each) | sd.convert(fuse)
    flat = torch.ones(sum(t.numel() for t in tree.values()))

    def apart(t: torch.Tensor) -> torch.Tensor:
        return t.view(heads, 2, half, -1).transpose(1, 2).reshape(t.shape)

    return {
        "torch": lambda: torch.cat([*map(apart, tree.values())]),
        "ours": lambda: both(tree),
        "flat copy": lambda: flat.clone(),
    }


def on_ranks(tiny: bool) -> Runners:
    """The projections, 96 MiB by rows, as one by columns; the same, fused already."""
    groups, d, columns = (2, 2, 4) if tiny else (8, 128, 4096)
    counts = {"q": 4, "k": 1, "v": 1}
    ranks = mesh((dist.get_world_size(),))

    def sharded(n: int, dim: int) -> DTensor:
        local = torch.zeros(n, columns).chunk(ranks.size(), dim)[0].clone()
        return DTensor.from_local(local, ranks, [Shard(dim)], run_check=False)

    tree = {n: sharded(groups * k * d, 0) for n, k in counts.items()}
    like = {"qkv": sharded(groups * 6 * d, 1)}
    fused = {"qkv": sharded(groups * 6 * d, 0)}
    rule = _fusing(groups, d)
    return {
        "ours": lambda: sd.convert(tree, rule, like=like),
        "redistribute": lambda: sd.redistribute(fused, like=like),
    }


def sharded(ranks: int, tiny: bool) -> Row:
    """Return the row of a convert on ranks, over a redistribute of as many bytes."""
    rounds = dict.fromkeys(("ours", "redistribute"), 1 if tiny else 9)
    return row_of(race_of_ranks(ranks, on_ranks, (tiny,), rounds), 1.0, "redistribute")


def bind(tiny: bool) -> Row:
    """How long it takes to find the groups and sizes of 44,544 leaves.

    The limit is to read as many names by one regex.
    """
    layers, experts = (2, 2) if tiny else (58, 256)
    names = ("gate", "up", "down")
    tree = {
        f"layers.{i}.experts.{e}.{name}": torch.empty(2, 3)
        for i in range(layers)
        for e in range(experts)
        for name in names
    }
    rules = [
        sd.rule(
            [f"{EXPERT}.gate [f c]", f"{EXPERT}.up [g c]"],
            "layers.{l}.gate_up [e (f + g) c]",
        ),
        sd.rule(f"{EXPERT}.down [f c]", "layers.{l}.down [e f c]"),
    ]
    regex = re.compile(r"layers\.(\d+)\.experts\.(\d+)\.(\w+)")
    found = race(
        {
            "ours": lambda: [rule.bind(tree) for rule in rules],
            "one regex": lambda: [*map(regex.fullmatch, tree)],
        },
        1 if tiny else 7,
    )
    return row_of(found)


WORKS: dict[str, Work] = {
    "convert: stack and fuse experts": beside_torch(stack_and_fuse, 1.0),
    "convert: RoPE permute": beside_torch(rope, 1.0),
    "convert: QKV in groups": beside_torch(queries_keys_values, 1.0),
    "convert: two in a row": beside_torch(in_a_row, 1.0),
    "bind rules, 44,544 leaves": Work(bind, "speed"),
    "convert: QKV by rows to columns, 4 ranks": Work(partial(sharded, 4), "exchange"),
}
