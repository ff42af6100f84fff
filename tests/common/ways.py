"""The ways to run a program, which all come to the same.

Each takes what ``Checked`` has found step by step: as one call, as a stream, in small
windows, through pickle, in threads and through a file.
"""

import copy
import pickle
import tempfile
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations_with_replacement
from pathlib import Path
from unittest import mock

import meaning
import numpy as np
import oracle
import torch
from buffers import Buffers
from ingredients import Word
from oracle import is_ours
from programs import NAMES, OURS_BY_NAME, invert, is_dense
from stepping import MEANT, around, attempt, failed, same, told, transform_of
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdtree as sd
from sdtree.transform.stages import TreeStage


def by_call(run):
    f = run.transform()
    with around(run.program.mode):
        after = attempt(f, run.tree)
    run.agrees("a call", after)


def by_prepare(run):
    """f.prepare(t)(u) = f(u), again and again, for another tree of the same code."""
    f, other = run.transform(), _with_other_data(run.program.world.build())
    with around(run.program.mode):
        ready = attempt(lambda: f.prepare(other))
    if failed(ready):
        run.agrees("to prepare", ready)
        return
    for again in ("once", "again"):
        with around(run.program.mode):
            run.agrees(f"prepared, {again}", attempt(ready, run.tree))
    ready.close()


def by_reuse(run):
    """It returns a copy of f(u), which lies where the result before did."""
    f = run.transform()
    with around(run.program.mode):
        ready = attempt(lambda: f.prepare(run.tree, reuse=True))
        found = ready if failed(ready) else [attempt(ready, run.tree) for _ in "ab"]
    if run.error is not None or failed(found):
        run.agrees("to reuse", found if failed(found) else found[0])
        return
    first, second = found
    same(second, sd.copy()(run.result), "reused", run.has_bits)
    ours, theirs = ([*map(oracle.address, tensors_in(x))] for x in (first, second))
    assert ours == theirs, f"results lie at {ours}, and then at {theirs}"


def _with_other_data(tree):
    """Return a tree of the same form: other data in its memory, and other marks."""
    for _, x in oracle.items(tree):
        if isinstance(x, torch.Tensor) and x.is_leaf and not x.is_inference():
            if x.is_floating_point():
                x.requires_grad_(not x.requires_grad)
            x.note = "of another"
    invert(tensors_in(tree))
    return tree


def tensors_in(tree):
    every = [t for _, x in oracle.items(tree) for t in oracle.data_of(x)]
    return [t for t in every if isinstance(t, torch.Tensor) and not t.is_meta]


def by_stream(run):
    """dict(f.stream(t)) = dict(items(f(t)))."""
    f = run.transform()
    with around(run.program.mode):
        after = attempt(lambda: list(f.stream(run.tree)))
    if failed(after) or run.error is not None:
        run.agrees("a stream", after if failed(after) else None)
        return
    told_of = {oracle.mark(path): x for path, x in after} if run.has_bits else {}
    assert len(told_of) in (0, len(after)), "a stream yields a path twice"
    wanted = {oracle.mark(path): x for path, x in oracle.items(run.result)}
    if run.has_bits:
        assert told_of.keys() == wanted.keys(), "a stream yields other paths"
        for path, x in told_of.items():
            found = oracle.difference(x, wanted[path])
            assert not found, f"a stream: {path}: {found}"


def by_windows(run):
    """How the tree is cut never shows."""
    names = ("sdtree.transform.run.WINDOW_BYTES", "sdtree.transform.run.SLICE_BYTES")
    f = run.transform()
    with mock.patch(names[0], 1), mock.patch(names[1], 1), around(run.program.mode):
        after = attempt(f, run.tree)
    run.agrees("in small windows", after)


def by_pickle(run):
    """A chain that came out of a pickle does what it did."""
    if any("into(" in step or "like(" in step for step in run.program.steps):
        return
    sent = pickle.loads(pickle.dumps(run.transform()))
    assert sent == run.transform(), "a transform equals itself out of a pickle"
    with around(run.program.mode):
        run.agrees("out of a pickle", attempt(lambda: sent(run.tree)))


def by_value(run):
    """Transforms are equal, and hash alike, exactly if they are written alike."""
    steps = [step for step in run.program.steps if "(re" not in step]
    if any("into(" in step or "like(" in step for step in steps):
        return
    one, other = (transform_of(steps, [Buffers(None)] * len(steps)) for _ in range(2))
    assert one == other, f"{one} is not itself"
    assert hash(one) == hash(other), f"{one} hashes as another"
    assert one == copy.deepcopy(one), f"{one} is not its deep copy"
    assert (one == sd.identity) == (str(one) == "identity"), f"{one} is the identity"


def by_plan(run):
    """explain tells of a transform without an error, or of the one that is due."""
    f = run.transform()
    with around(run.program.mode):
        plan = attempt(lambda: str(sd.explain(f, run.tree)))
    if run.error is None:
        assert not failed(plan), f"explain raises {told(plan)}"
    else:
        assert not failed(plan) or is_ours(plan), f"explain: {told(plan)}"


def by_order(run):
    """A stream goes in path order, a tie together at the place of its first."""
    if run.error is not None or any("where" in step for step in run.program.steps):
        return
    f = run.transform()
    places = {oracle.mark(p): k for k, (p, _) in enumerate(oracle.items(run.result))}
    got = [places[oracle.mark(path)] for path, _ in f.stream(run.tree)]
    if not oracle.ties(run.tree):
        assert got == sorted(got), f"a stream goes {got}"


def by_threads(run):
    if run.program.mode == "inference":
        return  # no other thread is in it, and what a user's function makes tells
    with ThreadPoolExecutor(3) as pool:
        calls = [run.transform() for _ in range(3)]
        found = list(pool.map(lambda f: attempt(f, run.tree), calls))
    for after in found:
        run.agrees("in threads", after)


def by_parts(run):
    """combine(*partition(t, s)) = t, and its sides are select and drop."""
    names = {**NAMES, **OURS_BY_NAME, **MEANT}
    which = eval(run.program.which, {**names, "selector": sd.selector})
    meant = eval(run.program.which, {**names, "selector": meaning.selector})
    matched, rest = sd.partition(run.tree, which)
    same(matched, meaning.select(meant, True)(run.tree), "the matched part")
    same(rest, meaning.drop(meant, True)(run.tree), "the rest")
    both = sd.combine(matched, rest, spec=sd.structure(run.tree))
    same(both, run.tree, "combine inverts partition")
    met = sd.combine(matched, rest)
    same(met, meaning.combine(oracle.take(matched), oracle.take(rest)), "combine")


def by_names(run):
    """Paths, names, flat form and structure are those of the oracle's walk."""
    result = run.tree if run.error is not None else run.result
    leaves = [x for _, x in oracle.items(result)]
    paths = [path for path, _ in oracle.items(result)]
    assert oracle.mark(sd.paths(result)) == oracle.mark(paths), "paths"
    assert [id(x) for x in sd.leaves(result)] == [id(x) for x in leaves], "leaves"
    spec = sd.structure(result)
    same(spec.make(leaves), result, "spec.make")
    for wrong in (leaves[1:], [*leaves, 0]):
        error = attempt(spec.make, wrong) if wrong != leaves or not leaves else None
        assert isinstance(error, ValueError) or len(wrong) == len(leaves), "make"
    for found in (spec.paths(), spec.names(), spec.names(), spec.paths()):
        assert len(found) == len(leaves), "what a spec returns is its own"
        found.clear()
    for sent in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        same(sent.make(leaves), result, "a spec that was sent")
        assert sent == spec, "a spec that was sent is another"
        assert hash(sent) == hash(spec), "a spec that was sent hashes as another"
    for sep in (".", "::"):
        meant = attempt(lambda sep=sep: oracle.names(result, sep))
        flat = attempt(lambda sep=sep: sd.flatten(result, sep=sep))
        if failed(meant):
            assert type(flat) is type(meant), f"flatten: {flat}"
            continue
        assert list(flat) == meant == sd.names(result, sep=sep), f"{list(flat)}"
        back = sd.unflatten(flat, spec=spec, sep=sep)
        same(back, result, "unflatten")
    text = attempt(spec.to_json)
    if not failed(text):
        again = sd.TreeSpec.from_json(text)
        same(again.make(leaves), result, "a spec out of JSON")
    else:
        assert is_ours(text), told(text)


def by_comparing(run):
    """A tree equals its copy; and another, exactly if the oracle sees no difference."""
    if not run.has_bits:
        return
    trees = [*run.trees, attempt(sd.map, _other, run.tree), _twin(run.tree)]
    for a, b in combinations_with_replacement([x for x in trees if not failed(x)], 2):
        is_same = not oracle.difference(a, b)
        got = attempt(sd.equal, a, b)
        assert not failed(got), told(got)
        assert got or not is_same, "equal trees are told to differ"
        found, bare = sd.diff(a, b), sd.diff(a, b, values=False)
        assert got == (not found), "equal and diff disagree"
        _check_gaps(a, b, found)
        is_plain_same = sorted(_plain(a)) == sorted(_plain(b))
        assert (not bare) == sd.similar(a, b) or not is_plain_same, "similar and diff"
        assert bare or is_plain_same, "plain values are not compared"
        if got:
            keys = [Counter(map(_text, oracle.items(x))) for x in (a, b)]
            assert keys[0] == keys[1], "trees that differ are told to be equal"


def _check_gaps(a, b, found):
    """Raise unless integers are told to be as far apart as they are."""
    sides = [{oracle.mark(p): x for p, x in oracle.items(tree)} for tree in (a, b)]
    for one in found:
        pair = [side.get(oracle.mark(one.path)) for side in sides]
        if one.what == "value" and all(map(_is_of_integers, pair)):
            x, y = (t.reshape(-1).tolist() for t in pair)
            most = max(abs(i - j) for i, j in zip(x, y, strict=True))
            assert one.b == f"by at most {most}", f"{one}, not {most}"


def _is_of_integers(x):
    is_here = isinstance(x, torch.Tensor) and is_dense(x) and not x.is_meta
    return is_here and x.dtype is torch.int64


def _other(x):
    """Return a value of the same type."""
    if _is_of_integers(x):
        return x.detach() + 1
    return x + 1 if type(x) in (int, float) else f"{x}." if type(x) is str else x


def _twin(tree):
    """Return a tree some keys of which are equal to those that it had, not the same."""
    if type(tree) is list:
        return [_twin(x) for x in tree]
    if type(tree) is not dict:
        return tree
    twins = {0: False, 1: True, "w": Word.W}
    return {twins.get(key, key): _twin(x) for key, x in tree.items()}


def _plain(tree):
    for path, x in oracle.items(tree):
        if not oracle.parts_of(x)[0]:
            yield str((oracle.mark(path), oracle.mark(x)))


def _text(item):
    path, x = item
    parts = [oracle.mark(t)[2] for t in oracle.data_of(x)]
    value = oracle.mark(x) if not oracle.parts_of(x)[0] else None
    return str((oracle.mark(path), parts, value))


def by_memory(run):
    """A stream holds a window or two, and a call no more beside its result.

    A stage that takes the tree whole has all of it held before. Leaves that were tied
    are in one window, and may have memory each of their own after a step.
    """
    if run.error is not None:
        return
    trees = [[*oracle.pieces(tree)] for tree in run.trees]
    largest = max([b - a for pieces in trees for a, b in pieces] or [0])
    tied = max(len(group) for tree in run.trees for group in [[0], *oracle.ties(tree)])
    spare = (2 + len(run.program.steps)) * largest * tied + 4096
    if any(isinstance(stage, TreeStage) for stage in run.transform().stages):
        spare += max(sum(b - a for a, b in pieces) for pieces in trees)
    news = [b - a for a, b in trees[-1] if (a, b) not in trees[0]]
    names = ("sdtree.transform.run.WINDOW_BYTES", "sdtree.transform.run.SLICE_BYTES")
    for what, call, most in (
        ("a stream", lambda f: deque(f.stream(run.tree), maxlen=0), spare),
        ("a call", lambda f: f(run.tree), spare + sum(news)),
    ):
        f = run.transform()
        with mock.patch(names[0], 1), mock.patch(names[1], 1), Alive() as alive:
            call(f)
        assert alive.peak <= most, f"{what} holds {alive.peak} bytes, not {most}"


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they are alive."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in _flat((args, kwargs))}
        given |= {s._cdata for s in args if isinstance(s, torch.UntypedStorage)}
        result = func(*args, **(kwargs or {}))
        for t in _flat(result):
            storage = t.untyped_storage()
            if storage._cdata not in given and not t.is_meta:
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        held = {k: one for k, one in self.made.items() if not one[0].expired()}
        self.made = held
        self.peak = max(self.peak, sum(size for _, size in held.values()))
        return result


def _flat(x):
    found = [leaf for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)]
    return [t for t in found if t.layout is torch.strided and not _is_wrapper(t)]


def _is_wrapper(t):
    return hasattr(type(t), "__tensor_flatten__")


def by_file(run, suffix, keep_names=False):
    """load(save(t)) = t; and torch and safetensors see every name with its own data."""
    tree = run.tree if run.error is not None else run.result
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"t{suffix}"
        error = attempt(lambda: sd.save(tree, target, keep_names=keep_names))
        if failed(error):
            assert is_ours(error), f"save raises {told(error)}"
            assert not target.exists(), "a refused save leaves a file"
            return
        meant = oracle.refill(tree, (_thawed(x) for _, x in oracle.items(tree)))
        foreign(target, suffix, tree, keep_names, run.has_bits)
        for mmap in (False, True):
            with _replacing(target):
                loaded = attempt(lambda mmap=mmap: sd.load(target, mmap=mmap))
            assert not failed(loaded), f"load raises {told(loaded)}"
            found = oracle.difference(loaded, meant, run.has_bits)
            assert not found, f"{suffix}: {found}"


@contextmanager
def _replacing(target):
    """Put a file of zeros in the place of one while torch maps it."""
    mapping, other = torch.from_file, target.with_suffix(".other")

    def replaced(*args, **options):
        other.write_bytes(bytes(target.stat().st_size))
        other.replace(target)
        return mapping(*args, **options)

    with mock.patch("torch.from_file", replaced):
        yield


def _thawed(x):
    """Return what a file gives back: it does not say which arrays were read-only."""
    return x.copy() if isinstance(x, np.ndarray) and not x.flags.writeable else x


def foreign(target, suffix, tree, keep_names, has_bits):
    """Raise unless other readers see each name with its own shape and data, if any."""
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        seen, aliases = load_file(target), {}
        for path, x in oracle.items(tree):
            is_array = isinstance(x, np.ndarray)
            if not is_array and not _is_plain_data(x):
                continue
            dtype = str(x.dtype).removeprefix("torch.")
            place = oracle.address(x), tuple(x.shape), oracle.steps(x), dtype
            leader = aliases.setdefault(place if x.nbytes else id(x), path)
            if is_array:
                continue
            t = seen.get(oracle.name_of(path))
            if t is None:
                assert keep_names < (leader is not path), f"{path} has no entry"
                continue
            assert t.shape == x.shape, f"{path}: {t.shape}, not {x.shape}"
            is_same = oracle.mark(t)[2] == oracle.mark(x.detach())[2]
            assert is_same or not has_bits, f"{path}"
    elif not failed(attempt(lambda: pickle.loads(pickle.dumps(tree)))):
        torch.load(target, weights_only=False)


def _is_plain_data(x):
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or x.is_meta:
        return False
    return is_dense(x.data) and not x.is_complex() and not x.is_quantized


WAYS = {
    "call": by_call,
    "prepare": by_prepare,
    "reuse": by_reuse,
    "stream": by_stream,
    "windows": by_windows,
    "pickle": by_pickle,
    "threads": by_threads,
    "value": by_value,
    "plan": by_plan,
    "order": by_order,
    "parts": by_parts,
    "names": by_names,
    "comparing": by_comparing,
    "memory": by_memory,
    "pt": lambda run: by_file(run, ".pt"),
    "safetensors": lambda run: by_file(run, ".safetensors"),
    "every name": lambda run: by_file(run, ".safetensors", keep_names=True),
}
