"""The likeliest mistakes of a new user: each message says where, and what to do."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from shards import fake
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from sdtree import errors


class Odd:
    """A class that no kind serves."""


class Scaled:
    """A class that is registered badly, again and again."""


@dataclass
class Written:
    """What a user wrote, the error, and words that its message must contain."""

    code: str
    error: type[Exception]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.code


def wrote(code: str, error: type[Exception], *words: str) -> Written:
    return Written(code, error, words)


CALLS = [
    # what is no tree
    wrote("sd.copy(model)", errors.UnknownLeaf, "Linear", "give its state_dict()"),
    wrote("sd.copy({'m': model})", errors.UnknownLeaf, "m: Linear", "state_dict()"),
    wrote("sd.flatten('model.pt')", TypeError, "name of a file", "sd.load('model.pt')"),
    wrote("sd.equal('a.pt', 'b.pt')", TypeError, "sd.load('a.pt')"),
    wrote("sd.copy()('model.pt')", TypeError, "sd.load('model.pt')"),
    wrote("sd.copy(Path('model.pt'))", TypeError, "sd.load('model.pt')"),
    wrote("sd.names(sd.copy())", errors.UnknownLeaf, "Transform", "transform(tree)"),
    wrote("sd.copy(x for x in [1])", errors.UnknownLeaf, "generator", "make it a list"),
    wrote("sd.copy(state.values())", errors.UnknownLeaf, "values", "make it a list"),
    wrote("sd.copy({'a': {Odd()}})", errors.UnknownLeaf, "a: a set", "Odd", "a list"),
    wrote("sd.copy({'a': [Odd()]})", errors.UnknownLeaf, "a.0", "register_leaf(Odd"),
    wrote("sd.save({'f': len}, path)", errors.UnknownLeaf, "f: builtin", "take it out"),
    # arguments in the wrong place, or by position
    wrote("sd.cast(torch.half)", TypeError, "sd.cast(tree, dtype=torch.float16)"),
    wrote("sd.cast(state, torch.half)", TypeError, "(tree, dtype=torch.float16)"),
    wrote("sd.gather(state, 0)", TypeError, "sd.gather(tree, ranks=0)"),
    wrote("sd.copy(state, state)", TypeError, "sd.copy(tree, into=...)"),
    wrote("sd.select('w', state)", TypeError, "sd.select(tree, 'w')"),
    wrote("sd.select(state)", TypeError, "sd.select(tree, 'model.**')"),
    wrote("sd.partition('w', state)", TypeError, "a dict", "tree comes before"),
    wrote("sd.map(state, torch.abs)", TypeError, "sd.map(fn, tree)", "dict"),
    wrote("sd.rename(state, 'a', 'b')", TypeError, "sd.rename(tree, ('a', 'b'))"),
    wrote("sd.rename(('a', 'b'), state)", TypeError, "tree comes before the rule"),
    wrote("sd.prefix(state)", TypeError, "a dict", "sd.prefix(tree, 'model')"),
    wrote("sd.where(sd.copy(), '**.bias')", TypeError, "the selector first"),
    wrote("sd.where('**', torch.abs)", TypeError, "sd.map(fn)"),
    wrote(
        "sd.save('a.pt', state)", TypeError, "tree first", "sd.save(tree, 'state.pt')"
    ),
    wrote("sd.load(state)", TypeError, "path of a file", "dict"),
    # transforms that are not called, or not made
    wrote("state | sd.copy()", TypeError, "a dict", "transform(tree)"),
    wrote("sd.copy() | state", TypeError, "a dict", "transform(tree)"),
    wrote("sd.chain(state, sd.copy())", TypeError, "a dict", "transform(tree)"),
    wrote(
        "sd.chain(sd.copy, sd.wait)", TypeError, "sd.copy is not called", "sd.copy(.."
    ),
    wrote("sd.chain([sd.copy()])", TypeError, "sd.chain(*transforms)"),
    wrote("torch.abs | sd.copy()", TypeError, "sd.map(fn)"),
    wrote("sd.copy(sd.cast(dtype=torch.half))", TypeError, "| sd.copy(...)"),
    wrote("list(sd.copy())", TypeError, "call it", "transform.stream(tree)"),
    wrote("sd.copy()['w']", TypeError, "call it", "transform(tree)"),
    wrote("sd.stream(state)", AttributeError, "transform.stream(tree)"),
    wrote("sd.gater(state)", AttributeError, "did you mean sd.gather?"),
    # options
    wrote("sd.cast(dtype='bf16')", TypeError, "'bf16'", "torch.bfloat16"),
    wrote("sd.cast(dtype=torch.int8)", TypeError, "torch.int8", "sd.map(lambda t"),
    wrote("sd.cast(state)", TypeError, "dtype=torch.bfloat16"),
    wrote("sd.to(state, 'cdua')", ValueError, "'cdua'", "'cuda'"),
    wrote("sd.load(path, device='cdua')", ValueError, "'cdua'", "'cuda'"),
    wrote("sd.to(state, torch.half)", TypeError, "a dtype is no device", "'cpu'"),
    wrote("sd.gather(state, ranks='0')", TypeError, "ranks='0'", "'balanced'"),
    wrote("sd.gather(state, ranks=3)", ValueError, "[3]", "group of (0,)"),
    wrote("sd.distribute(state)", TypeError, "like=model.state_dict()"),
    wrote("sd.distribute(state, like=state, into=state)", TypeError, "one of the two"),
    wrote("sd.names(state, sep='')", TypeError, "sep=''", "not empty"),
    # selectors and names
    wrote("sd.select(state, 'modle.**')", errors.NoMatch, "'modle'", "is 'model'"),
    wrote("sd.select(state, 'model')", errors.NoMatch, "'model.**' takes 2 leaves"),
    wrote("sd.strip_prefix(state, 'modl')", errors.NoMatch, "strip_prefix('modl') m"),
    wrote("sd.strip_prefix(state, 'model.')", ValueError, "dot", "write 'model'"),
    wrote("sd.select(state, ['a', 'b'])", TypeError, "several are a tuple: ('a', 'b')"),
    wrote("sd.select(state, re.compile(b'w'))", TypeError, "write re.compile('w')"),
    wrote("sd.select(state, list[int])", TypeError, "not a selector: list[int]"),
    wrote("sd.rename(state, (re.compile(b'w'), 'v'))", TypeError, "re.compile('w')"),
    wrote(
        "sd.rename((re.compile('w'), r'\\1'))", ValueError, "0 groups", "reference 1"
    ),
    wrote("sd.rename((re.compile('w'), r'\\g<n>'))", ValueError, "group name 'n'"),
    wrote("sd.rename(('*.**', '***'))", ValueError, "whole segments", "'***'"),
    wrote("sd.select(state, lambda x: x)", TypeError, "with (path, leaf), at model."),
    wrote("sd.selector('a') and 'b'", TypeError, "&, | and ~"),
    wrote("sd.flatten({0: 1, '0': 2})", errors.NameCollision, "(0,) and ('0',)"),
    wrote(
        "sd.rename(a_b, {'a': 'b'})", errors.NameCollision, "a and b", "at b", "drop"
    ),
    # two trees
    wrote("sd.copy(a_b, into={'a': 1})", errors.SpecMismatch, "1 missing: 'b'"),
    wrote("sd.copy(w2, into=w3)", errors.SpecMismatch, "w: shape (2,)", "empty_like"),
    wrote(
        "sd.copy(w2, into=half)", errors.SpecMismatch, "w: dtype", "float16", "empty"
    ),
    wrote("sd.copy(w2, into=w2)", errors.SpecMismatch, "at w", "sd.empty_like(tree)"),
    wrote("sd.distribute(w2, like=w3)", errors.SpecMismatch, "w (shape (2,)", "(3,)"),
    wrote("sd.combine(a_b, {'b': 1})", errors.NameCollision, "b: two of", "sd.drop"),
    wrote("sd.unflatten(a_b, spec=a_b)", TypeError, "dict", "sd.structure(tree)"),
    wrote(
        "sd.unflatten(a_b, sd.structure([1]))", errors.SpecMismatch, "1 missing: '0'"
    ),
    wrote("sd.unflatten({0: 1})", TypeError, "names", "str", "0"),
    wrote("sd.unflatten(a_b, sep='')", TypeError, "sep=''", "not empty"),
    wrote("sd.unflatten(a_b, sep=None)", TypeError, "sep=None", "not empty"),
    wrote("sd.combine(a_b, spec={})", TypeError, "spec=", "dict", "sd.structure(tree)"),
    wrote("sd.combine(a_b, 'b.pt')", TypeError, "sd.load('b.pt')"),
    wrote("sd.structure(a_b).make([1])", ValueError, "2 leaves", "1 came"),
    # functions
    wrote("sd.map(torch.abs, {'n': 'x'})", TypeError, "at n", "where(torch.Tensor"),
    wrote("sd.map(torch.add, {'n': 'x'}, {'n': 'y'})", TypeError, "sd.select(b, torch"),
    wrote("sd.map(lambda x: [x], w2)", TypeError, "w: the function returned a list"),
    wrote(
        "sd.map(lambda x: Odd(), w2)", errors.UnknownLeaf, "w: ", "register_leaf(Odd"
    ),
    # files
    wrote("sd.save(state, 'x.npz')", errors.FileError, "x.npz", ".safetensors"),
    wrote("sd.save(state, 'no/x.pt')", FileNotFoundError, "no/x.pt", "make it first"),
    wrote("sd.load('no.pt')", FileNotFoundError, "no.pt"),
    wrote("sd.load(folder)", errors.FileError, "a directory", "path of a file"),
    wrote("sd.convert_file(path, sd.copy(), other)", TypeError, "not a Transform"),
    wrote("sd.convert_file(state, other)", TypeError, "a dict", "sd.save(transform("),
    wrote("sd.convert_file(path, other, torch.half)", TypeError, "sd.cast(dtype=torch"),
    wrote("sd.convert_file(path, other, len)", TypeError, "sd.whole(fn)"),
    wrote("sd.convert_file(open(notes), other)", TypeError, "an open file", "its name"),
    wrote("sd.load(notes)", errors.FileError, "notes.pt", "neither a .pt nor"),
    wrote("sd.load(open(notes, 'rb'))", TypeError, "an open file", "give its name"),
    wrote("sd.save(sparse, other)", TypeError, "w: ", "sparse_coo", ".to_dense()"),
    wrote("sd.save(sd.spec(w2), path)", TypeError, "w: the Abstract", "no data"),
    # kinds and containers
    wrote("sd.register_leaf(Odd())", TypeError, "flatten"),
    wrote("leaf(Scaled(), pair, pair)", TypeError, "takes a class"),
    wrote("leaf(Scaled, 1, pair)", TypeError, "flatten=1", "(local tensors, aux)"),
    wrote("leaf(dict, pair, pair)", TypeError, "dict is a container"),
    wrote("tried(lambda x: ones, pair)", errors.UnknownLeaf, "o: ", "Scaled", "aux)"),
    wrote("tried(lambda x: (ones, 1), pair)", errors.UnknownLeaf, "o: ", "aux)"),
    wrote("tried(pair, lambda ts: 1)", TypeError, "at o", "unflatten(aux, local tens"),
    wrote("tried(pair, lambda a, ts: 1)", errors.UnknownLeaf, "back as a int", "aux"),
    wrote("sd.register_container(Odd())", TypeError, "takes a class"),
    wrote("sd.register_container(Odd)", errors.UnknownContainer, "unflatten=..."),
    wrote("container(1, 2)", TypeError, "(Odd)", "(children, metadata)"),
]


def tried(flatten: Any, unflatten: Any) -> object:
    """Register a kind and meet a leaf of it."""
    sd.register_leaf(Scaled, flatten=flatten, unflatten=unflatten)
    return sd.copy({"o": Scaled()})


@pytest.fixture
def names(tmp_path):
    """What the lines above speak of."""
    from pathlib import Path

    (tmp_path / "notes.pt").write_text("no checkpoint")
    model = torch.nn.Linear(2, 2)
    return {
        "sd": sd,
        "re": re,
        "torch": torch,
        "Path": Path,
        "Odd": Odd,
        "Scaled": Scaled,
        "tried": tried,
        "leaf": lambda k, f, u: sd.register_leaf(k, flatten=f, unflatten=u),
        "container": lambda f, u: sd.register_container(Odd, flatten=f, unflatten=u),
        "pair": lambda *parts: ((torch.ones(2),), None),
        "ones": torch.ones(2),
        "model": model,
        "state": {"model": model.state_dict(), "step": 0},
        "a_b": {"a": 1, "b": 2},
        "w2": {"w": torch.ones(2)},
        "w3": {"w": torch.ones(3)},
        "half": {"w": torch.ones(2).half()},
        "sparse": {"w": torch.ones(2).to_sparse()},
        "path": tmp_path / "state.pt",
        "other": tmp_path / "state.safetensors",
        "notes": tmp_path / "notes.pt",
        "folder": tmp_path,
    }


def told(error: BaseException) -> str:
    """Return what a user reads: the message and its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@pytest.mark.parametrize("written", CALLS, ids=str)
def test_a_mistake_is_told_with_the_way_out(written, names):
    """No tensor is printed, and the message is no longer than it is read."""
    with pytest.raises(written.error) as error:
        eval(written.code, names)
    message = told(error.value)
    for word in written.words:
        assert word in message, message
    assert "tensor(" not in message
    assert len(message) < 500


def test_a_device_that_is_not_there_is_told_with_the_path():
    """On whatever machine: none has so many."""
    with pytest.raises(RuntimeError) as error:
        sd.to({"model": {"w": torch.ones(2)}}, "cuda:77")
    assert "cannot use device 'cuda:77'" in told(error.value)
    assert "here is cpu" in told(error.value)
    assert "at model.w" in told(error.value)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="it can pin memory")
def test_pinning_without_an_accelerator():
    with pytest.raises(RuntimeError, match=r"accelerator\.is_available"):
        sd.offload(pin=True)


def test_a_stream_that_was_closed_is_not_taken_for_an_empty_one():
    with sd.copy().stream({"a": 1, "b": 2}) as stream:
        next(stream)
    with pytest.raises(ValueError, match=r"closed before its end.*with block"):
        next(stream)


def test_a_stream_that_has_ended_stays_ended():
    with sd.copy().stream({"a": 1}) as stream:
        assert len(list(stream)) == 1
    assert list(stream) == []


def test_gathering_a_sharded_leaf_whose_group_is_gone():
    """Say, when a training script has already called ``destroy_process_group``."""
    with fake(2):
        mesh = init_device_mesh("cpu", (2,))
        leaf = DTensor.from_local(torch.ones(2), mesh, [Shard(0)], run_check=False)
    with pytest.raises(RuntimeError, match=r"w: gather.*\(0, 1\).*init_process_group"):
        sd.gather({"w": leaf})


# -- what is no mistake ------------------------------------------------------------


def test_where_has_both_call_forms():
    """As every operation has that returns a tree."""
    tree = {"a": 1, "b": 2}
    double = sd.map(lambda x: 2 * x)
    assert (
        sd.where(tree, "a", double) == sd.where("a", double)(tree) == {"a": 2, "b": 2}
    )


def test_a_str_is_a_leaf():
    """Only what ends as a checkpoint does is taken for the name of a file."""
    assert sd.copy("text") == "text"
    assert sd.leaves(["model.pt"]) == ["model.pt"]
    assert sd.copy({"from": "model.pt"}) == {"from": "model.pt"}


def test_none_is_a_leaf_that_a_function_may_return():
    assert sd.map(lambda x: None, [1]) == [None]


def test_a_container_can_be_registered_again():
    """A notebook cell is run more than once; the latest pair counts."""

    class Bag:
        def __init__(self, *things: object) -> None:
            self.things = things

    def register(first: int) -> None:
        sd.register_container(
            Bag,
            flatten=lambda bag: (bag.things[first:], bag.things[:first]),
            unflatten=lambda before, things: Bag(*before, *things),
        )

    register(0)
    assert sd.leaves(Bag(1, 2)) == [1, 2]
    register(1)
    assert sd.leaves(Bag(1, 2)) == [2]
