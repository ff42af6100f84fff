"""Conversion of files: by the command line too, window by window, and no more read."""

import json
import os
from pathlib import Path

import pytest
import torch
from file_memory import MIB, measured, reads_the_peak
from shards import shard, together
from torch.distributed.tensor import Shard
from torch.utils._python_dispatch import TorchDispatchMode

import sdtree as sd
from sdtree.__main__ import main
from sdtree.conversion.assembly import Assembly
from sdtree.io import convert_file
from sdtree.io.converting import by_window

RULES = [
    sd.rule(["L.{i}.q [a c]", "L.{i}.k [b c]"], "m.{i}.qk [(a + b) c]"),
    sd.rule("emb", "{p:in|out}.w", alias="p"),
]


def source(folder, suffix):
    """Return a file with a state in it."""
    rows = {"q": 4, "k": 2}
    tree = {f"L.{i}.{n}": torch.randn(k, 4) for i in range(2) for n, k in rows.items()}
    sd.save(tree | {"emb": torch.ones(5, 4), "step": torch.tensor(3)}, folder / suffix)
    return folder / suffix


@pytest.mark.parametrize("to", ["b.pt", "b.safetensors"])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_is_converted_window_by_window(tmp_path, monkeypatch, name, to):
    """As its tree is, ties too, and never whole."""
    monkeypatch.setattr(by_window, "_convert_spooled", None)
    file, target = source(tmp_path, name), tmp_path / to
    transform = sd.convert(RULES, rest="keep") | sd.cast(dtype=torch.bfloat16)
    convert_file(file, target, transform)
    assert sd.equal(sd.load(target), transform(sd.load(file)))
    assert sd.ties(sd.load(target)) == [[("in.w",), ("out.w",)]]


@pytest.mark.parametrize("to", ["b.pt", "b.safetensors"])
def test_what_is_made_last_is_made_in_its_place(tmp_path, monkeypatch, to):
    """In the file, and nowhere else before, padding and ties too."""
    file, target = source(tmp_path, "a.pt"), tmp_path / to
    pad = sd.rule("L.{i}.q [a c]", "{i} [c (a + n)]", fill={"n": -1.0}, n=3)
    both = sd.rule("L.{i}.k [a b]", "{i}.{x:a|b} [b a]", alias="x")
    moved = sd.rename({"0": "zero"})
    every = [sd.convert(rules, rest="keep") | moved for rules in ([pad, both], [pad])]
    trees = [transform(sd.load(file)) for transform in every]
    for transform, wanted in zip(every, trees, strict=True):
        convert_file(file, target, transform)
        assert sd.equal(sd.load(target), wanted)
        assert sd.ties(sd.load(target)) == sd.ties(wanted)
        monkeypatch.setattr(Assembly, "put_together", None)  # else to look at ties


def test_a_function_of_the_tree_is_called_wherever_it_stands(tmp_path):
    """Alone, after stages that touch no data, and before such."""
    file, target = source(tmp_path, "a.pt"), tmp_path / "b.pt"
    more = sd.whole(lambda tree: {**tree, "more": torch.ones(1)})
    convert = sd.convert(RULES[0], rest="keep")
    for transform in (more, sd.drop("emb") | more, convert | more, more | convert):
        convert_file(file, target, transform)
        assert sd.equal(sd.load(target), transform(sd.load(file)))


def test_the_command_line_takes_rules_from_a_file(tmp_path, monkeypatch, capsys):
    """One or a list; what they leave can be kept or dropped, and renamed."""
    monkeypatch.chdir(tmp_path)
    tree = sd.load(source(tmp_path, "a.pt"))
    Path("all.json").write_text(json.dumps([rule.to_data() for rule in RULES]))
    Path("one.json").write_text(RULES[0].to_json())
    convert = ("convert", "a.pt", "b.pt", "--rules")
    assert main([*convert, "all.json", "--rest", "keep"]) == 0
    assert sd.equal(sd.load("b.pt"), sd.convert(tree, RULES, rest="keep"))
    renamed = ("--rename", "m.*.qk=x.*.qk", "--cast", "half")
    assert main([*convert, "one.json", "--rest", "drop", *renamed]) == 0
    assert sd.names(sd.load("b.pt")) == ["x.0.qk", "x.1.qk"]
    assert (
        main(["convert", "a.pt", "b.pt", "--drop", "step", "--rules", "all.json"]) == 0
    )
    assert "step" not in sd.load("b.pt")
    assert capsys.readouterr() == ("", "")


def test_rules_are_read_once(tmp_path, monkeypatch):
    """They may come through a pipe, as a shell gives what a command prints."""
    monkeypatch.chdir(tmp_path)
    source(tmp_path, "a.pt")
    read, write = os.pipe()
    os.write(write, RULES[0].to_json().encode())
    os.close(write)
    command = ("convert", "a.pt", "b.pt", "--rules", f"/dev/fd/{read}")
    assert main([*command, "--rest", "drop"]) == 0
    os.close(read)
    assert sd.names(sd.load("b.pt")) == ["m.0.qk", "m.1.qk"]


WRONG = {
    "[": "rules.json: not JSON: Expecting value",
    '[{"source": "w [a", "target": "w"}]': "rules.json: rule 1 of 1: a side is",
    '{"source": "w"}': "rules.json: the JSON of a rule is an object",
    '{"source": "emb", "target": "w"}': "no rule names them; add a rule",
    '{"source": "no", "target": "w"}': "no leaf is named as the rule says",
    "\x80": "rules.json: not JSON: 'utf-8' codec",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_what_is_wrong_with_rules_is_told(tmp_path, capsys, monkeypatch, text, message):
    """And what was there stays."""
    monkeypatch.chdir(tmp_path)
    source(tmp_path, "a.pt")
    Path("b.pt").write_text("as it was")
    Path("rules.json").write_bytes(text.encode("latin-1"))
    assert main(["convert", "a.pt", "b.pt", "--rules", "rules.json"]) == 2
    assert message in capsys.readouterr().err
    assert Path("b.pt").read_text() == "as it was"


CONVERSIONS = """
    sd.save({"w": torch.ones(2, 1)}, target)
    convert_file(target, target, sd.convert(sd.rule("w [a b]", "w [b a]")))
    print(peak(sd.convert(sd.rule("{x}.{e} [a b]", "{x} [(e b) a]"))))
    print(peak(sd.convert(sd.rule("{x}.{e} [a b]", "{x} [(e b) a]"), rest="drop")
               | sd.select("x3")))
"""


@reads_the_peak
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_memory_holds_what_is_made_of_one_leaf(tmp_path, suffix):
    """Of 128 MiB, put together to leaves of 16 MiB, some windows, not all."""
    file = tmp_path / f"source.{suffix}"
    sd.save(
        {f"x{i}.{e}": torch.ones(1024, 2048) for i in range(8) for e in (0, 1)}, file
    )
    every, one = measured(CONVERSIONS, file, tmp_path / f"target.{suffix}")
    assert every < 80 * MIB
    assert one < 80 * MIB


def test_rules_of_transformers_need_a_config(tmp_path, capsys):
    sd.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    files = (str(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert main(["convert", *files, "--rules", "transformers:llama"]) != 0
    assert "has no config.json" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "b.pt").exists()


def test_a_folder_of_transformers_becomes_its_model(tmp_path, capsys):
    """As from_pretrained has it; another model type is named."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
        vocab_size=11,
    )
    model, folder = transformers.MixtralForCausalLM(config), tmp_path / "folder"
    model.save_pretrained(folder)
    command = ["convert", str(folder), str(tmp_path / "model.pt"), "--rules"]
    assert main([*command, "transformers:llama"]) != 0
    assert "give --rules transformers:mixtral" in capsys.readouterr().err
    assert main([*command, "transformers:mixtral"]) == 0
    assert sd.equal(sd.load(tmp_path / "model.pt"), dict(model.state_dict()))


# -- what is read of a file that is mapped -----------------------------------------

STACK = [
    sd.rule(["e.{e}.w1 [f c]", "e.{e}.w3 [g c]"], "up [e (f + g) c]"),
    sd.rule(["q [(h two d) c]", "k [a c]"], "qk [((h d two) + a) c]", h=2, two=2),
]


class Reads(TorchDispatchMode):
    """Which elements operations read of some tensors, by the numbers that these hold.

    A view reads nothing.
    """

    def __init__(self, tensors):
        super().__init__()
        self.spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors]
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returned = [x.alias_info for x in function._schema.returns]
        if not any(info is not None and not info.is_write for info in returned):
            for t in torch.utils._pytree.tree_leaves((args, kwargs)):
                if isinstance(t, torch.Tensor) and t.numel() and not t.is_meta:
                    self._note(t)
        return function(*args, **kwargs or {})

    def _note(self, t):
        if any(start <= t.data_ptr() < stop for start, stop in self.spans):
            self.found.update(torch.clone(t).flatten().tolist())


def reads_its_own(path, option):
    """Return which elements this rank reads, and those that its targets are made of."""
    tree, ways = sd.load(path, mmap=True), {"up": Shard(0), "qk": Shard(1)}
    wanted = sd.convert(tree, STACK)
    like = {name: shard(wanted[name], None, way) for name, way in ways.items()}
    with Reads(tree.values()) as reads:
        made = sd.convert(tree, STACK, **{option: sd.map(torch.zeros_like, like)})
    assert sd.equal(made, like)
    needed = {n for x in like.values() for n in x.to_local().flatten().tolist()}
    return sorted(reads.found), sorted(needed)


@pytest.mark.parametrize("option", ["like", "into"])
def test_a_rank_reads_of_a_mapped_file_what_its_part_is_made_of(tmp_path, option):
    """Element by element, and nothing else: planning reads no data."""
    shapes = {f"e.{e}.{w}": (3, 4) for e in range(8) for w in ("w1", "w3")}
    shapes |= {"q": (12, 4), "k": (5, 4)}
    tree, total = {}, 0
    for name, shape in shapes.items():
        count = shape[0] * shape[1]
        tree[name] = torch.arange(total, total + count).view(shape)
        total += count
    sd.save(tree, tmp_path / "a.safetensors")
    every = together(reads_its_own, tmp_path / "a.safetensors", option)
    for read, needed in every:
        assert read == needed
        assert len(read) == total // 4
