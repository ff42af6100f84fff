"""The laws of copy, offload, cast, empty_like and into=: bits, ties, purity."""

from itertools import product
from operator import mul

import oracle
import pytest
import torch
from hypothesis import example, given, reject
from hypothesis import strategies as st
from odd_bools import odd_trees
from oracle import assert_same, snapshot
from torch import Tensor

import sdtree as sd
from sdtree.tensors.storage import extent
from sdtree.testing import FLOATING, tensors, trees

SIMPLE = tensors(meta=False)
INNER = ("first", "second")


def local(tree):
    """Return the dense tensors in a tree that hold anything, leaf by leaf."""
    every = [t for _, x in oracle.items(tree) for t in oracle.data_of(x)]
    return [t for t in every if isinstance(t, torch.Tensor)]


def marks(tree):
    """Return what copies keep beside the bits."""
    return [
        (x.requires_grad, {k: v for k, v in x.__dict__.items() if k not in INNER})
        if isinstance(x, torch.Tensor)
        else None
        for x in sd.leaves(tree)
    ]


def nought(x):
    """Return the empty value of the type of a plain one."""
    return type(x)() if type(x) in (bool, int, float, str, bytes) else x


@given(odd_trees(portable=False), st.sampled_from([sd.copy(), sd.offload()]))
def test_a_copy_is_equal_and_apart(tree, f):
    """copy(t) = t bit for bit, sharing no storage, with marks kept; t is untouched."""
    before = snapshot(tree)
    result = f(tree)
    assert_same(result, tree, "copy")
    assert not any(
        shared for _, inside, _ in oracle.kept(result, tree) for shared in inside
    )
    assert marks(result) == marks(tree)
    assert snapshot(tree) == before
    assert not any(t.is_conj() or t.is_neg() for t in local(result))
    assert all(x.grad_fn is None for x in local(result))


def rewritten(tree):
    prepared = sd.copy().prepare(tree, reuse=True)
    prepared(sd.empty_like(tree))
    return prepared(tree)


@pytest.mark.parametrize(
    "copied",
    [
        *(sd.copy(), sd.offload(), sd.cast(dtype=torch.float64), rewritten),
        lambda tree: sd.copy(tree, into=sd.empty_like(tree)),
        lambda tree: sd.Stager().stage(tree).wait(),
        lambda tree: {p[0]: x for p, x in sd.Stager(budget_bytes=1).stage(tree)},
    ],
)
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_bool_keeps_its_bytes(copied, is_alone):
    """Any byte but 0 reads as True, and a view of it as bytes tells them apart."""
    u = torch.tensor([7, 0, 1, 200], dtype=torch.uint8)
    mask = u.view(torch.bool)
    made = copied({"mask": mask} if is_alone else {"bytes": u, "mask": mask})
    assert made["mask"].view(torch.uint8).tolist() == [7, 0, 1, 200]
    assert all(x.view(torch.uint8).tolist() == [7, 0, 1, 200] for x in made.values())


@given(SIMPLE, st.sampled_from([sd.copy(), sd.cast(dtype=torch.float64)]))
def test_what_has_no_data_is_laid_out_as_what_has(t, f):
    """A file is laid out by what becomes of leaves without their data."""
    meta = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="meta")
    made, wanted = f(meta), f(t)
    assert made.is_meta
    assert made.dtype == wanted.dtype
    assert made.stride() == wanted.stride()


@given(odd_trees(portable=False))
def test_copy_into_fresh_buffers(tree):
    """copy(t, into=empty_like(t)) = t, and the result is the tree of the buffers.

    Plain values in them are no matter.
    """
    buffers = sd.empty_like()(tree)
    assert sd.similar(buffers, tree)
    assert sd.ties(buffers) == sd.ties(tree)
    result = sd.copy(into=sd.map(nought, buffers))(tree)
    assert_same(result, tree, "copy into buffers")
    pairs = zip(sd.leaves(result), sd.leaves(buffers), strict=True)
    assert all(a is b for a, b in pairs if isinstance(a, torch.Tensor))


@given(
    odd_trees(portable=False),
    st.sampled_from([sd.cast(dtype=torch.float64), sd.copy()]),
)
def test_copy_into_buffers_in_a_chain(tree, before):
    """chain(f, copy(into=b)) writes what f makes."""
    expected = cast_or_reject(before, tree)
    into = (sd.empty_like() | sd.map(nought))(expected)
    assert_same((before | sd.copy(into=into))(tree), expected, "copy in a chain")


@given(trees())
def test_copy_into_buffers_and_move_on(tree):
    """A later stage that changes the order of leaves does not mix up the buffers."""
    tree = {"b": {"t": tree}, "a": [torch.ones(2), torch.zeros(3)], "c": torch.ones(4)}
    into = sd.empty_like(tree)
    for move in (sd.rename(("c", "b.c")), sd.prefix("x") | sd.drop("x.a.0")):
        expected = move(sd.copy(tree))
        assert_same((sd.copy(into=into) | move)(tree), expected, f"copy | {move}")


@given(trees(leaves=SIMPLE))
def test_ties_strides_and_offsets(tree):
    """Members of a tie keep their strides and their offsets from each other."""
    result = sd.copy(tree)
    old = {id(t): t for t in local(tree)}
    for tie in sd.ties(tree):
        before = [dict(sd.items(tree))[path] for path in tie]
        after = [dict(sd.items(result))[path] for path in tie]
        for a, b in zip(before, after, strict=True):
            assert a.stride() == b.stride()
            gap = (
                b.storage_offset() * b.itemsize - after[0].storage_offset() * b.itemsize
            )
            assert gap == (a.storage_offset() - before[0].storage_offset()) * a.itemsize
    assert old is not None


@given(SIMPLE)
@example(torch.arange(20.0).as_strided((4, 3), (5, 1)))
@example(torch.arange(8.0).as_strided((2, 2), (6, 1)))
@example(torch.arange(9.0).as_strided((2, 2), (7, 1)))
def test_room_for_an_untied_leaf(t):
    """Only the span is made; a leaf that fills less than half of it becomes dense."""
    made = sd.copy({"t": t})["t"]
    size = made.untyped_storage().nbytes()
    if 2 * t.numel() < extent(t):
        assert made.is_contiguous()
        assert size == t.numel() * t.itemsize
    else:
        assert made.stride() == t.stride() or t.is_contiguous()
        assert size <= extent(t) * t.itemsize


@st.composite
def views(draw):
    """Return trees of views of one storage, of several shapes, strides and dtypes."""
    base = torch.arange(48, dtype=torch.float32)
    tree = {}
    for i in range(draw(st.integers(2, 6))):
        start = draw(st.integers(0, 40))
        length = draw(st.integers(0, 8))
        view = base[start : start + length]
        kind = draw(st.integers(0, 4))
        if kind == 1:
            view = view[::2]
        elif kind == 2 and length % 2 == 0:
            view = view.view(2, -1).t() if length else view
        elif kind == 3 and length % 2 == 0 and start % 2 == 0:
            view = view.view(torch.int64)
        elif kind == 4:
            view = view.view(torch.uint8)[draw(st.integers(0, 3)) :]
        tree[str(i)] = view
    return tree


@given(views())
def test_views_of_one_storage(tree):
    """Copies of views are views of one storage of the span, overlapping as they did."""
    result = sd.copy(tree)
    assert_same(result, tree, "views")
    spans = [
        (t.storage_offset() * t.itemsize, (t.storage_offset() + extent(t)) * t.itemsize)
        for t in local(tree)
        if t.numel()
    ]
    if len(spans) > 1:
        span = max(stop for _, stop in spans) - min(start for start, _ in spans)
        sizes = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in local(result)
            if t.numel()
        }
        assert len(sizes) == 1
        assert sum(sizes.values()) < span + 32
    with torch.no_grad():
        for t in local(tree):
            t.zero_()
    assert all(
        (torch.arange(48.0) == x).any()
        for t in local(result)
        if t.dtype == torch.float32
        for x in t.flatten()
    )
    buffers = sd.empty_like(tree)
    assert_same(sd.copy(tree, into=buffers), tree, "views into buffers")


@st.composite
def strided(draw, base, size):
    """Return a view of a storage, of any strides that fit: it may repeat elements."""
    steps = [draw(st.integers(0, 5)) for _ in size]
    reach = 1 + sum((n - 1) * step for n, step in zip(size, steps, strict=True))
    return base.as_strided(size, steps, draw(st.integers(0, len(base) - reach)))


@st.composite
def copies(draw):
    """Return leaves and buffers that lie anyhow in two storages, or in one."""
    bases = [torch.arange(1, 49, dtype=torch.int16), torch.zeros(48, dtype=torch.int16)]
    source, target = bases if draw(st.integers(0, 4)) else (bases[0], bases[0])
    pairs = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.lists(st.integers(1, 3), max_size=3))
        a, b = draw(strided(source, size)), draw(strided(target, size))
        if draw(st.booleans()):
            b = target.as_strided(size, a.stride(), a.storage_offset())
        pairs.append((a.clone() if draw(st.integers(0, 2)) == 0 else a, b))
    return [a for a, _ in pairs], [b for _, b in pairs]


def elements(t):
    """Return the address of every element."""
    start, steps = t.data_ptr(), t.stride()
    places = product(*map(range, t.size()))
    return [start + 2 * sum(map(mul, steps, place)) for place in places]


@given(copies())
def test_buffers_that_lie_anyhow(sides):
    """copy(t, into=b) = t, or it is refused: some place would be written twice or read.

    Then nothing is written.
    """
    leaves, buffers = sides
    before = [[*map(Tensor.tolist, side)] for side in sides]
    written = [a for t in buffers for a in elements(t)]
    read = {a for t in leaves for a in elements(t)}
    try:
        result = sd.copy(leaves, into=buffers)
    except sd.errors.SpecMismatch:
        assert len({*written}) < len(written) or read & {*written}
        assert [[*map(Tensor.tolist, side)] for side in sides] == before
    else:
        assert [*map(Tensor.tolist, result)] == before[0]
        assert not read & {*written}


HEADS = st.tuples(st.integers(0, 1), st.integers(0, 2), st.booleans())
"""Where slices begin in the source, and where in the buffer, and in which."""

ENDS = st.tuples(st.booleans(), st.integers(0, 2))
"""At which of two heads a slice begins, and how long it is."""


@example((0, 0, True), (0, 1, True), [(True, 0), (True, 2), (False, 0)])
@example((0, 0, True), (1, 0, True), [(True, 0), (False, 0)])
@example((0, 0, True), (0, 1, False), [(True, 2), (False, 0)])
@given(HEADS, HEADS, st.lists(ENDS, min_size=2, max_size=4))
def test_buffers_that_begin_together(one, another, ends):
    """The same of slices, of which many begin together and end apart.

    It is refused where two places would go to one, or one that is read is written.
    """
    cuts = [(*(one if first else another), n) for first, n in ends]
    bases = torch.arange(5.0), torch.zeros(5)
    leaves = [bases[0][a : a + n + 1] for a, _, _, n in cuts]
    buffers = [bases[other][b : b + n + 1] for _, b, other, n in cuts]
    wanted = [t.tolist() for t in leaves]
    moves = {(a + k, b + k, o) for a, b, o, n in cuts for k in range(n + 1)}
    written = {(b, other) for _, b, other in moves}
    if len(written) < len(moves) or any((a, False) in written for a, _, _ in moves):
        with pytest.raises(sd.errors.SpecMismatch):
            sd.copy(leaves, into=buffers)
        assert [t.tolist() for t in leaves] == wanted
    else:
        assert [t.tolist() for t in sd.copy(leaves, into=buffers)] == wanted


def one_nan(t):
    """Return a tensor with one nan for all: which one a conversion makes is open."""
    t = t.detach()
    if t.dtype not in FLOATING[:4]:
        return t
    return torch.where(t.isnan(), torch.full((), torch.nan, dtype=t.dtype), t)


@given(trees(leaves=SIMPLE), st.sampled_from(FLOATING[:4]))
def test_cast(tree, dtype):
    """cast changes floating-point tensors alone, as Tensor.to does; ties stay."""
    result = sd.cast(tree, dtype=dtype)
    assert sd.structure(result) == sd.structure(tree)
    for old, new in zip(sd.leaves(tree), sd.leaves(result), strict=True):
        wanted = old.detach().to(dtype) if old.is_floating_point() else old.detach()
        assert type(new) is type(old)
        assert new.dtype is wanted.dtype
        assert oracle.mark(one_nan(new))[2] == oracle.mark(one_nan(wanted))[2]
        assert new.requires_grad == old.requires_grad
    for tie in sd.ties(tree):
        members = [dict(sd.items(tree))[path] for path in tie]
        if len({(t.dtype, t.is_conj(), t.is_neg()) for t in members}) == 1:
            assert tie in sd.ties(result)


@given(trees(portable=False), st.sampled_from([torch.float16, torch.float64]))
def test_cast_on_abstract_leaves(tree, dtype):
    """spec(cast(t)) = cast(spec(t)): what is foretold is what happens."""
    done = sd.spec(cast_or_reject(sd.cast(dtype=dtype), tree))
    told = sd.cast(sd.spec(tree), dtype=dtype)
    assert [(x.kind, x.shape, x.dtype) for x in sd.leaves(done)] == [
        (x.kind, x.shape, x.dtype) for x in sd.leaves(told)
    ]


def cast_or_reject(f, tree):
    """Return what a cast makes, unless an array is laid out as no tensor is."""
    try:
        return f(tree)
    except sd.errors.UnknownLeaf as error:
        if "is not cast" not in str(error):
            raise
        reject()


@given(trees(portable=False), st.sampled_from([torch.float16, torch.float64]))
def test_what_does_not_change_is_itself(tree, dtype):
    """A leaf with nothing to do is the same object: Parameters and graphs, too."""
    weight = torch.nn.Parameter(torch.ones(2))
    tree = {"tree": tree, "weight": weight, "product": weight * 2}
    for old, new in zip(sd.leaves(tree), sd.leaves(sd.to(tree, "cpu")), strict=True):
        assert new is old
    done = cast_or_reject(sd.cast(dtype=dtype), tree)
    for old, new in zip(sd.leaves(tree), sd.leaves(done), strict=True):
        assert new is old or new.dtype != old.dtype
    for again in (sd.cast(done, dtype=dtype), sd.cast(done, like=done)):
        for old, new in zip(sd.leaves(done), sd.leaves(again), strict=True):
            assert new is old


@given(trees(leaves=SIMPLE))
def test_cast_like(tree):
    """cast(cast(t, dtype), like=t) has the dtypes of t."""
    low = sd.cast(tree, dtype=torch.bfloat16)
    assert sd.similar(sd.cast(low, like=tree), tree)


@given(trees(leaves=SIMPLE))
def test_nbytes_counts_ties_once(tree):
    """nbytes(t) is at most the bytes of the storages, and the same for a copy."""
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in local(tree)
    }
    assert sd.nbytes(tree) <= sum(kept.values())
    assert sd.nbytes(sd.copy(tree)) == sd.nbytes(tree) or any(
        t.is_conj() or t.is_neg() for t in local(tree)
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6))
def test_nbytes_counts_a_byte_once(cuts):
    """nbytes of slices of one tensor is how many elements they have together."""
    base = torch.arange(20, dtype=torch.uint8)
    held = {k for start, size in cuts for k in range(start, start + size)}
    assert sd.nbytes([base[a : a + n] for a, n in cuts]) == len(held)


# -- compare -----------------------------------------------------------------------


@given(trees(portable=False))
def test_a_tree_equals_itself(tree):
    """equal, similar and not diff are reflexive, whatever the bits."""
    again = sd.identity(tree)
    assert sd.equal(again, tree)
    assert sd.similar(again, tree)
    assert not sd.diff(again, tree)
    assert str(sd.diff(again, tree)) == "no differences"


@given(trees(), trees())
def test_equal_and_diff_agree(a, b):
    """equal(a, b) = not diff(a, b); what differs without values is more than data."""
    assert sd.equal(a, b) == (not sd.diff(a, b))
    assert sd.equal(a, b) or oracle.difference(a, b)
    assert sd.similar(a, b) or sd.diff(a, b, values=False)
    assert sd.equal(a, b) == sd.equal(b, a)


@given(st.data())
def test_one_flipped_bit_is_a_difference(data):
    """equal sees every bit of every dtype."""
    t = (
        data.draw(tensors(meta=False))
        .detach()
        .clone(memory_format=torch.contiguous_format)
    )
    t = t.resolve_conj().resolve_neg()
    if t.numel() == 0 or t.dtype is torch.bool:
        return
    other = t.clone()
    raw = other.view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not sd.equal({"t": t}, {"t": other})
    [found] = sd.diff({"t": t}, {"t": other})
    assert found.what == "value"


# -- refusals ----------------------------------------------------------------------


def refused(tree, into, *words):
    """Check that a copy into buffers is refused and writes nothing."""
    before = snapshot(into)
    with pytest.raises(sd.errors.SpecMismatch) as caught:
        sd.copy(tree, into=into)
    for word in words:
        assert word in str(caught.value)
    assert snapshot(into) == before


def test_into_is_checked_before_the_first_byte():
    """Structure, shape, dtype, kind of every leaf: the message names the path."""
    tree = {"a": torch.ones(2), "b": {"c": torch.ones(3)}}
    zeros = torch.zeros
    refused(tree, {"a": zeros(2), "b": {"c": zeros(4)}}, "b.c", "(3,)", "(4,)")
    refused(tree, {"a": zeros(2), "b": {"c": zeros(3).half()}}, "b.c", "float16")
    refused(tree, {"a": zeros(2), "b": {"d": zeros(3)}}, "b.c", "b.d")
    refused(tree, {"a": zeros(2), "b": [zeros(3)]}, "b.c", "b.0")
    refused(
        tree, {"a": zeros(2), "b": {"c": torch.nn.Parameter(zeros(3))}}, "Parameter"
    )
    refused({"a": torch.ones(2)}, {"a": zeros(2, device="meta")}, "meta")


@pytest.mark.parametrize(
    "make",
    [
        torch.Tensor.half,
        lambda x: x[:1],
        torch.nn.Parameter,
        lambda x: x.to("meta"),
        torch.Tensor.tolist,
        lambda x: 3,
    ],
)
def test_what_only_comes_to_a_buffer_is_checked_when_it_comes(make):
    """What a function makes of leaves is not known before, and not cut to fit after."""
    buffers = {"w": torch.zeros(2)}
    with pytest.raises((sd.errors.SpecMismatch, TypeError), match="w"):
        (sd.map(make) | sd.copy(into=buffers))({"w": torch.ones(2)})
    assert buffers["w"].tolist() == [0, 0]


@pytest.mark.parametrize("count", [1, 3])
def test_a_view_without_data_lies_nowhere(count):
    """Its address is how far in it begins, and that is no place in memory."""

    def tree(make):
        return {f"w{i}": make() for i in range(count)}

    meta = tree(lambda: torch.empty(24, device="meta")[2:5])
    other = tree(lambda: torch.empty(24, device="meta")[2:5])
    assert sd.copy(meta, into=other)["w0"] is other["w0"]
    real = tree(lambda: torch.ones(3))
    for source, into in ((meta, real), (real, meta)):
        with pytest.raises(sd.errors.SpecMismatch, match="w0: one of leaf and buffer"):
            sd.copy(source, into=into)
    assert sd.equal(real, tree(lambda: torch.ones(3)))


def test_into_that_overlaps_is_refused():
    """Buffers that overlap each other or the source lose data, so they are refused."""
    base = torch.zeros(5)
    tree = {"a": torch.ones(3), "b": torch.full((3,), 2.0)}
    refused(tree, {"a": base[:3], "b": base[2:]}, "a", "b", "overlap")
    refused({"a": torch.ones(3)}, {"a": torch.zeros(1).expand(3)}, "expanded")
    source = torch.arange(6.0)
    with pytest.raises(sd.errors.SpecMismatch, match="overlaps the source"):
        sd.copy({"a": source[:4]}, into={"a": source[2:]})
    assert torch.equal(source, torch.arange(6.0))


def test_buffers_beside_each_other_are_written_apart():
    """Views of one slab that do not overlap are good buffers, gaps stay untouched."""
    slab = torch.full((4, 4), 9.0)
    sd.copy(
        {"a": torch.ones(4), "b": torch.zeros(4)},
        into={"a": slab[:, 0], "b": slab[:, 2]},
    )
    assert slab[:, 0].eq(1).all()
    assert slab[:, 2].eq(0).all()
    assert slab[:, 1::2].eq(9).all()


def test_a_buffer_that_repeats_elements_with_gaps_between():
    """It spans more than it has elements, and is refused all the same."""
    tree = {"a": torch.arange(8.0).view(2, 4)}
    refused(tree, {"a": torch.zeros(4, 3)[:, 0].expand(2, 4)}, "a: ", "expanded")
    refused(tree, {"a": torch.zeros(28).as_strided((2, 4), (4, 4))}, "a: ", "expanded")
    slab = torch.zeros(3)
    sd.copy(
        {"a": torch.ones(1).expand(2, 2)}, into={"a": slab.as_strided((2, 2), (1, 1))}
    )
    assert slab.eq(1).all(), "one element may go wherever the buffer has one"
    column = torch.arange(12.0).view(4, 3)[:, 0]
    alike = sd.empty_like({"a": column.expand(2, 4)})
    assert (
        sd.copy({"a": column.expand(2, 4)}, into=alike)["a"].tolist()
        == [[0, 3, 6, 9]] * 2
    )


def test_memory_that_others_can_map():
    """share=True puts every storage into shared memory, ties and 0-dim too."""
    w = torch.arange(4.0)
    shared = sd.offload({"a": w, "b": w[1:], "n": torch.tensor(3)}, share=True)
    assert all(t.is_shared() for t in local(shared))
    assert sd.ties(shared) == [[("a",), ("b",)]]
    assert all(t.is_shared() for t in local(sd.empty_like({"a": w}, share=True)))


def test_options_are_checked_when_the_transform_is_made():
    """A bad dtype or device, or pin= with no accelerator, does not wait for a tree."""
    with pytest.raises(TypeError, match="floating-point"):
        sd.cast(dtype=torch.int32)
    with pytest.raises(TypeError, match="one of the two"):
        sd.cast()
    with pytest.raises(ValueError, match="for the CPU"):
        sd.offload(device="meta", share=True)
    with pytest.raises(ValueError, match="nodevice"):
        sd.to("nodevice")
    if not torch.accelerator.is_available():
        with pytest.raises(RuntimeError, match="accelerator"):
            sd.empty_like(pin=True)


def test_how_far_values_differ():
    """Counted over all of a large leaf; nan is told, and two of them are alike."""
    a = torch.zeros(2**20 + 5)
    b = a.clone()
    b[-1] = 2
    [found] = sd.diff({"w": a}, {"w": b})
    assert (found.a, found.b) == ("1 of 1048581 elements differ", "by at most 2")
    b[-2] = float("nan")
    [found] = sd.diff({"w": a}, {"w": b})
    assert (found.a, found.b) == ("2 of 1048581 elements differ", "by at most nan")
    a[-2] = float("nan")
    [found] = sd.diff({"w": a}, {"w": b})
    assert found.b == "by at most 2"


def test_buffers_that_meet_in_two_windows_are_refused(monkeypatch):
    """What one window has written no later one writes over."""
    for name in ("WINDOW_BYTES", "SLICE_BYTES"):
        monkeypatch.setattr(f"sdtree.transform.run.{name}", 8)
    tree, slab = {"a": torch.ones(4), "b": torch.full((4,), 2.0)}, torch.zeros(6)
    into = sd.copy() | sd.copy(into={"a": slab[:4], "b": slab[2:]})
    with pytest.raises(sd.errors.SpecMismatch, match="lies where another leaf"):
        into(tree)
    tied = {"a": slab[:4], "b": slab[2:]}
    assert_same((sd.copy() | sd.copy(into=sd.empty_like(tied)))(tied), tied, "tied")
