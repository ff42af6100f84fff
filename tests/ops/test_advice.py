"""Every call that an error advises works.

``ADVISED`` provokes the errors. The calls are taken out of the messages and run, so a
new case is one line: the code that fails, and what stands for dots in the advice. An
error that gives its advice in words has beside it the code that is meant.
"""

import ast
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy
import pytest
import torch

import sdtree as sd
import sdtree.io
from sdtree.layout import whole
from sdtree.text.meant import MEANT

ROOT = Path(sd.__file__).parent


class Odd:
    """A class that no kind serves."""


class Lent:
    """A class that lends its memory, as arrays of jax and cupy do."""

    def __init__(self, t: torch.Tensor) -> None:
        self.t = t

    def __dlpack__(self, **options: Any) -> Any:
        return self.t.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.t.__dlpack_device__()


class Held:
    """A leaf with a tensor that no file has room for."""

    def __init__(self, t: torch.Tensor) -> None:
        self.t = t


sd.register_leaf(
    Held, flatten=lambda x: ((x.t,), None), unflatten=lambda _, ts: Held(ts[0])
)


class Foreign(Sequence[Any]):
    """A container that nothing is known of."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: Any) -> Any:
        raise IndexError


class Lying(dict[str, Any]):
    """A mapping that says it has more than it shows."""

    def __len__(self) -> int:
        return 7


class Box(dict[str, Any]):
    """A container that text can name once it is registered."""


class Case(dict[str, Any]):
    """Another."""


UNKNOWN = (Odd, Lent, Foreign, Lying, Box)
"""What each test has classes of its own of, for it registers them."""


@dataclass
class Advised:
    """Code that fails, what is meant by the words of its error, and by the dots."""

    code: str
    meant: tuple[str, ...]
    dots: dict[str, str]

    def __str__(self) -> str:
        return self.code


SPLIT: Final = (
    "sd.convert({'w': sd.Shards(torch.ones(2), layout)}, "
    "sd.rule('w [(a b)]', 'w [a b]', a=2)"
)
"""Leaves that ranks share, and a rule for them."""


def advised(code: str, *meant: str, **dots: str) -> Advised:
    return Advised(code, meant, dots)


ADVISED: Final = [
    advised("sd.map(torch.relu_, a)"),
    advised("sd.map(lambda x, y: x.lerp(y, 0.1), {'n': 1}, {'n': 1})"),
    # arguments in the wrong place
    advised("sd.convert(tree, 'model.w')"),
    advised("sd.convert([])"),
    advised(f"{SPLIT}, like={{'w': torch.ones(2, 1)}})", f"{SPLIT})"),
    advised("sd.select(tree, 'model.**', 'step')"),
    advised("sd.drop(tree, re.compile('model'), 'step')"),
    advised("sd.rename(tree, 'model.**', 'net.**')"),
    advised("sd.prefix(tree, 'a', 'b')"),
    advised("sd.cast(tree, torch.half)"),
    advised("sd.cast(torch.half)"),
    advised("sd.cast(tree)"),
    advised("sd.gather(tree, 0)"),
    advised("sd.copy(tree, tree)", into="sd.empty_like(tree)"),
    advised("sd.offload(tree, True)", device="'cpu'"),
    advised("sd.offload(tree, torch.device('cpu'))"),
    advised("sd.offload(torch.device('cpu'))"),
    advised("sd.empty_like(torch.half)"),
    advised("sd.to(torch.device('cpu'), 'cpu')"),
    advised("sd.wait(tree, 1)"),
    advised("sd.select('step', tree)"),
    advised("sd.select(sd.selector('step'), tree)"),
    advised("sd.select(tree)"),
    advised(
        "sd.select(tree, ['model.**', 'step'])",
        "sd.select(tree, ('model.**', 'step'))",
    ),
    advised(
        "sd.select(tree, [sd.selector('step'), 'model.**'])",
        "sd.select(tree, ('step', 'model.**'))",
    ),
    advised("sd.select(tree, re.compile(b'st'))", "sd.select(tree, re.compile('st'))"),
    advised("sd.prefix(tree)"),
    advised("sd.strip_prefix(tree)"),
    advised("sd.rename(tree)"),
    advised("sd.rename(tree, 'model.**')"),
    advised("sd.rename(('model.**', 'net.**'), tree)"),
    advised("sd.map(tree, fn)"),
    advised("sd.map_with_path(tree, fn)"),
    advised("sd.whole(tree)"),
    advised("sd.copy(sd.identity)"),
    advised("sd.flatten(sd.copy())"),
    advised("sd.explain(tree, transform)"),
    advised("sd.unflatten(spec)"),
    advised("sd.unflatten(flat, spec=tree)", "sd.unflatten(flat, spec=spec)"),
    advised("sd.flatten(tree, '.', tree)", "sd.flatten(sd.combine(tree, other))"),
    advised("sd.combine()"),
    advised("sd.combine(tree, spec={})"),
    advised("sd.save('new.pt', tree)"),
    advised("sd.distribute(tree)"),
    # what stands in the place of a transform
    advised("sd.chain(sd.copy, sd.wait)"),
    advised("sd.chain('model.**')"),
    advised("sd.where('model.**', torch.half)"),
    advised("sd.convert_file('tree.pt', sd.copy(), 'b.pt')"),
    advised("sd.convert_file(sd.copy(), 'tree.pt', 'b.pt')"),
    advised("sd.convert_file('tree.pt', 'b.pt', 'model.**')"),
    advised("sd.convert_file('tree.pt', 'b.pt', [sd.copy()])"),
    advised("sd.copy() | sd.flatten"),
    advised("sd.chain([sd.copy()])"),
    advised("sd.copy() | len"),
    advised("sd.copy() | sd.partition"),
    advised("sd.copy() | sd.combine"),
    advised("sd.copy() | sd.nbytes"),
    advised("sd.copy() | sd.equal"),
    advised("sd.partition('step')"),
    # what is no tree, or no leaf
    advised("sd.names(sd.selector('step'))"),
    advised("sd.names(sd.copy())", "transform(tree)"),
    advised("sd.copy().prepare(tree)({'w': 1})", "transform.prepare(tree)"),
    advised("closed(sd.copy().prepare(tree))", "transform.prepare(tree)"),
    advised("sd.names(spec)", "spec.make([1])"),
    advised("sd.flatten('tree.pt')"),
    advised("sd.equal('tree.pt', 'tree.pt')"),
    advised("sd.copy(path)"),
    advised(
        "sd.copy({'a': [Odd()]})",
        "sd.copy({'a': [Odd()]})",
        flatten="lambda x: ((), x)",
        unflatten="lambda x, _: x",
    ),
    advised(
        "sd.copy({'a': Lent(torch.ones(2))})",
        "sd.copy({'a': Lent(torch.ones(2))})",
        unflatten="lambda _, ts: Lent(ts[0])",
    ),
    advised(
        "sd.copy(Foreign())",
        "sd.copy(Foreign())",
        flatten="lambda x: ((), None)",
        unflatten="lambda _, xs: Foreign()",
    ),
    advised(
        "sd.copy(Lying(a=1))",
        "sd.copy(Lying(a=1))",
        flatten="lambda x: (tuple(x.values()), None)",
        unflatten="lambda _, xs: Lying(a=xs[0])",
    ),
    advised(
        "sd.structure({'b': Box()}).to_json()", "sd.structure({'b': Box()}).to_json()"
    ),
    advised("sd.save({'b': Case()}, 'a.pt')", "sd.save({'b': Case()}, 'a.pt')"),
    advised(
        "sd.save({'h': Held(torch.ones(1))}, 'a.safetensors')",
        "sd.save(sd.map(lambda x: x.t, {'h': Held(torch.ones(1))}), 'a.safetensors')",
    ),
    advised(
        "sd.cast({'a': numpy.ones(2)}, dtype=torch.bfloat16)",
        "sd.where(numpy.ndarray, sd.map(torch.from_numpy))({'a': numpy.ones(2)})",
    ),
    advised(
        "sd.cast({'a': numpy.ones(2, '>f4')}, dtype=torch.double)",
        "sd.map(lambda x: x.astype('f4'), {'a': numpy.ones(2, '>f4')})",
    ),
    advised("sd.map(torch.abs, {'n': 'x'})"),
    advised(
        "sd.map(lambda x: [x], {'n': 1})",
        "sd.rename({'n': 1}, ('n', 'n.0'))",
        "sd.unflatten({'n.0': 1})",
        "sd.drop({'n': 1}, 'n')",
    ),
    advised(
        "torch.vmap(lambda t: sd.copy([t])[0])(torch.ones(2, 2))",
        "torch.vmap(lambda t: sd.map(torch.clone, [t])[0])(torch.ones(2, 2))",
    ),
    # names that are not there, or twice
    advised("sd.select(tree, 'modle.**')", "sd.select(tree, 'model.**')"),
    advised("sd.select(tree, lambda path, x: False)"),
    advised("sd.drop(tree, 'model')", "sd.drop(tree, 'model.**')"),
    advised("sd.where(tree, 'nothing', sd.copy())"),
    advised("sd.rename(tree, ('nothing', 'x'))"),
    advised(
        "sd.rename(tree, {'**': '**', 'step': 'x'})",
        "sd.rename(tree, {'step': 'x', '**': '**'})",
    ),
    advised("sd.strip_prefix(tree, 'nothing')"),
    advised("sd.strip_prefix(tree, 'module.')", "sd.strip_prefix(tree, 'module')"),
    advised(
        "sd.combine(tree, {'step': 4})",
        "sd.combine(sd.drop(tree, 'step'), {'step': 4})",
        "sd.combine({'step': 4}, sd.partition(tree, 'step')[1])",
    ),
    advised(
        "sd.rename(tree, ('model.w', 'step'))",
        "sd.rename(sd.drop(tree, 'step'), ('model.w', 'step'))",
        "sd.rename(tree, {'step': 'x', 'model.w': 'step'})",
    ),
    advised(
        "sd.rename(known, ('b.w', 'a.v'))",
        "sd.rename(known, ('b.w', 'c.v'))",
        "sd.rename(OrderedDict(known), ('b.w', 'a.v'))",
    ),
    advised(
        "sd.unflatten({'a': 1, 'a.b': 2})",
        "sd.unflatten(sd.rename({'a': 1, 'a.b': 2}, ('a', 'c')))",
        "sd.unflatten({'a': 1, 'a.b': 2}, spec=sd.structure({'a.b': 2, 'a': 1}))",
    ),
    # layouts
    advised("sd.shards(tree, {'model.*': 3})"),
    advised("sd.Shards.of(tensor)"),
    # dtypes, devices, buffers
    advised("sd.cast(dtype=torch.int8)"),
    advised("sd.to(tree, torch.half)", device="'cpu'"),
    advised("sd.copy(tree, into=sd.cast(tree, dtype=torch.half))"),
    advised("sd.copy(tree, into=tree)"),
    advised("sd.distribute(tree, like=sd.spec(tree))"),
    advised(
        "sd.distribute(tree, like=sd.cast(tree, dtype=torch.half))",
        "(sd.cast(like=target) | sd.distribute(like=target))(tree)",
    ),
    # what others call it
    *(
        advised(
            f"sd.{name}",
            *([] if "sd." in call else [call]),
            flatten="lambda x: ((), x)",
            unflatten="lambda x, _: x",
        )
        for call, name in {call: name for name, call in MEANT.items()}.items()
    ),
]

ELSEWHERE = {
    "diff": "the command line, of two checkpoints that are nested otherwise",
    "redistribute": "a leaf that is sharded among ranks, where a whole one goes",
}
"""What is advised where these cases do not come, and there."""


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Return what code and advice speak of, all of it fit for what is advised."""
    monkeypatch.chdir(tmp_path)
    tree = {"model": {"w": torch.ones(2)}, "module": {"w": 1}, "step": 3}
    sd.save(tree, "tree.pt")
    known = OrderedDict({"a.w": 1, "b.w": 2})
    known._metadata = OrderedDict({"a": {"version": 1}, "b": {"version": 2}})
    return {
        **{name: getattr(sd, name) for name in sd.__all__ if name not in ("map",)},
        **globals(),
        "tree": tree,
        "other": {"z": 1},
        "a": {"w": torch.ones(2)},
        "b": {"w": torch.ones(2)},
        "buffers": sd.empty_like(tree),
        "known": known,
        "model": SimpleNamespace(state_dict=lambda: tree, load_state_dict=len),
        "Kind": type("Kind", (), {}),
        "cls": type("cls", (Box,), {}),
        "pattern": "step",
        "replacement": "steps",
        "numpy": numpy,
        "sdtree": sd,
        "flat": {"a.b": 1},
        "spec": sd.structure({"a": {"b": 1}}),
        "path": tmp_path / "tree.pt",
        "target": sd.cast(tree, dtype=torch.half),
        "transform": sd.copy(),
        "closed": lambda run: run.close() or run({}),
        "transforms": [sd.copy(), sd.wait()],
        "selector": sd.selector("step"),
        "which": "step",
        "tensor": torch.ones(2),
        "layout": whole((2,), (0,)),
        **{cls.__name__: type(cls.__name__, (cls,), {}) for cls in UNKNOWN},
        "fn": lambda *args: sd.copy(args[-1]),
        "device": "cpu",
    }


def told(code: str, names: dict[str, Any]) -> str:
    """Return the message of the error that code raises, and its notes."""
    try:
        eval(code, names)
    except Exception as error:
        return "\n".join([str(error), *getattr(error, "__notes__", ())])
    return ""


CALL = re.compile(r"(?:[a-z_]+(?:\(\))? \| )?sd\.\w+\(")


def calls_in(message: str) -> Iterator[str]:
    """Yield the calls that a message spells out, each to its end."""
    for found in CALL.finditer(message):
        end, depth = found.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(message[end], 0)
            end += 1
        joined = re.compile(r"(?: \| '[^']*')*").match(message, end)
        yield message[found.start() : joined.end()]


def filled(call: str, dots: dict[str, str]) -> str:
    """Return a call with what is meant by the dots in it."""
    for name, value in dots.items():
        call = re.sub(rf"\b{name}=\.\.\.", f"{name}={value}", call)
    return call.replace("(...)", "()").replace(", ...)", ", transform)")


@pytest.mark.parametrize("case", ADVISED, ids=str)
def test_what_an_error_advises_works(case, names):
    """Each call in its message runs, and each function in it is in one that does."""
    message = told(case.code, names)
    calls = [filled(call, case.dots) for call in calls_in(message)]
    if "missing_ok=True" in message and not any("missing_ok" in x for x in calls):
        calls.append(f"{case.code[:-1]}, missing_ok=True)")
    calls += case.meant
    assert calls, message
    for call in calls:
        assert "..." not in call, message
        eval(call, names)
    for name in re.findall(r"\bsd\.(\w+)(?!\w|\()", message):
        assert any(f"sd.{name}" in call for call in (*calls, case.code)), name


def test_a_name_of_another_library_leads_to_one_of_ours():
    """None of them is that of a module of the package, which would be found."""
    for name, call in MEANT.items():
        with pytest.raises(AttributeError, match=re.escape(call)):
            getattr(sd, name)


def literals() -> Iterator[str]:
    """Yield the pieces of text in the package that are no docstrings."""
    for file in ROOT.rglob("*.py"):
        if "demo" in file.parts:
            continue  # it plays commands, and raises nothing of its own
        tree = ast.parse(file.read_text())
        docs = {id(x.value) for x in ast.walk(tree) if isinstance(x, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docs:
                yield from [node.value] if isinstance(node.value, str) else []


def test_no_advice_is_left_out(names):
    """A function that an error speaks of is in one of the messages above."""
    spoken = {name for text in literals() for name in re.findall(r"\bsd\.(\w+)", text)}
    messages = [told(case.code, names) for case in ADVISED]
    heard = {name for text in messages for name in re.findall(r"\bsd\.(\w+)", text)}
    heard |= {
        name for case in ADVISED for name in re.findall(r"\bsd\.(\w+)", case.code)
    }
    assert spoken - heard <= {*ELSEWHERE}
