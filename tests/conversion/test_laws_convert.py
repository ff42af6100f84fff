"""The laws of conversion, against what each element means, told index by index."""

import pickle

import pytest
import torch
from conversions import bits, same, worlds
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import sdtree as sd
from sdtree.conversion.assembly import Assembly
from sdtree.testing import assert_same
from sdtree.testing import trees as sampled_trees

DTYPES = [
    *(torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.complex64, torch.int8, torch.int64, torch.uint16, torch.bool),
]


@st.composite
def laid(draw, t):
    """Draw the same tensor, laid out in some way."""
    way = draw(st.sampled_from(["dense", "turned", "cut", "grown", "lazy"]))
    if way == "lazy" and t.dtype in (torch.float32, torch.bfloat16, torch.int64):
        return torch._neg_view(-t)
    if way == "lazy" and t.is_complex():
        return t.conj().resolve_conj().conj()
    if way == "turned" and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if way == "cut" and t.dim():
        room = t.new_empty((*t.shape[:-1], 2 * t.shape[-1] + 1))
        view = room[..., 1::2]
        view.copy_(t)
        return view
    if way == "grown":
        room = t.new_empty((3, *t.shape))
        room[1] = t
        return room[1]
    return t


@st.composite
def trees(draw, world, dtype):
    """Draw the source of a world: its leaves in some order, each in some memory."""
    leaves = world.leaves(world.source, dtype)
    order = draw(st.permutations(list(leaves)))
    return {name: draw(laid(leaves[name])) for name in order}


@given(st.data(), worlds(), st.sampled_from(DTYPES))
def test_convert_moves_every_element_to_its_place(data, world, dtype):
    """Whatever the polynomials, the dtype and the memory; inputs stay as they are."""
    tree = data.draw(trees(world, dtype))
    before = {name: (bits(t), t._version) for name, t in tree.items()}
    made = sd.convert(tree, world.rule())
    same(made, world.leaves(world.target, dtype))
    assert before == {name: (bits(t), t._version) for name, t in tree.items()}


@given(st.data(), worlds(), st.sampled_from(DTYPES))
def test_the_inverse_undoes_it(data, world, dtype):
    tree = data.draw(trees(world, dtype))
    bound = world.rule().bind(tree)
    made = sd.convert(tree, bound)
    same(sd.convert(made, bound.inverse()), tree)
    assert bound.inverse().inverse() == bound


@settings(max_examples=30)
@given(worlds())
def test_a_rule_is_a_value(world):
    """It comes back from JSON and from a pickle, equal and of one hash."""
    rule = world.rule()
    bound = rule.bind(world.leaves(world.source, torch.int8))
    for other in (sd.Rule.from_json(rule.to_json()), pickle.loads(pickle.dumps(rule))):
        assert other == rule
        assert hash(other) == hash(rule)
    assert eval(repr(rule), {"rule": sd.rule}) == rule
    assert pickle.loads(pickle.dumps(bound)) == bound


@settings(max_examples=50)
@given(st.data(), worlds())
def test_every_way_to_run_it_makes_the_same(data, world):
    """As a stream, in a chain, into buffers, after a template, without data, again."""
    tree = data.draw(trees(world, torch.float32))
    rule, wanted = world.rule(), world.leaves(world.target, torch.float32)
    convert = sd.convert(rule)
    same({".".join(path): t for path, t in convert.stream(tree)}, wanted)
    same(
        (convert | sd.cast(dtype=torch.float64))(tree),
        sd.map(torch.Tensor.double, wanted),
    )
    buffers = {name: torch.full_like(t, torch.nan) for name, t in wanted.items()}
    made = sd.convert(tree, rule, into=buffers)
    same(made, wanted)
    assert all(made[name] is t for name, t in buffers.items())
    same(sd.convert(tree, rule, like=sd.spec(wanted)), wanted)
    ways = convert, sd.convert(rule, like=sd.spec(wanted)), sd.convert(rule, into=made)
    for way in ways:
        run = way.prepare({name: torch.zeros_like(t) for name, t in tree.items()})
        same(run({name: t.clone() for name, t in tree.items()}), wanted)
    assert sd.similar(convert(sd.spec(tree)), sd.spec(wanted))
    assert world.is_told(sd.explain(convert, tree))


@settings(max_examples=30)
@given(st.data(), worlds())
def test_a_nested_tree_is_converted_by_its_names(data, world):
    tree = data.draw(trees(world, torch.int8))
    wanted = world.leaves(world.target, torch.int8)
    pairs = [(a, b) for names in (tree, wanted) for a in names for b in names]
    assume(not any(b.startswith(f"{a}.") for a, b in pairs))  # a leaf, and a branch
    made = sd.convert(sd.unflatten(tree), world.rule())
    same(sd.flatten(made), wanted)


@settings(max_examples=40)
@given(st.data(), sampled_trees())
def test_a_rule_that_only_renames_puts_leaves_where_rename_does(data, tree):
    """Containers, types of keys, holes, what is empty and ``_metadata`` too."""
    assume(sd.paths(tree) != [()])
    names = {name.partition(".")[0] for name in sd.structure(tree).names()}
    head = data.draw(st.sampled_from(["", *(n for n in sorted(names) if n.isalnum())]))
    source, glob = ("{x:**}", "**") if not head else (f"{head}.{{x:**}}", f"{head}.**")
    try:
        wanted = sd.rename(tree, (glob, "net.**"), missing_ok=True)
        assume(any(name.startswith(f"{head}.") or not head for name in sd.names(tree)))
    except sd.errors.NameCollision:
        assume(False)
    rule = sd.rule(source, "net.{x:**}")
    assert_same(sd.convert(tree, rule, rest="keep"), wanted, "rename")


WORDS = st.sampled_from(["a", "w", "v", "aw"])
NAMES = st.lists(WORDS, min_size=1, max_size=6)
SIDES = st.lists(st.sampled_from(["**", "*", "w", "a"]), min_size=1, max_size=5)


@settings(max_examples=300)
@given(st.lists(NAMES, min_size=1, max_size=6), SIDES, st.data())
def test_slots_share_a_name_as_the_stars_of_rename_do(names, side, data):
    """The first takes as much as it can; what would be read otherwise is refused."""
    stars = [piece for piece in side if "*" in piece]
    other = [*stars]
    for _ in range(data.draw(st.integers(0, 2))):
        other.insert(data.draw(st.integers(0, len(other))), data.draw(WORDS))
    tree = {".".join(name): i for i, name in enumerate(names)}
    globs = ".".join(side), ".".join(other or ["v"])
    assume(not any("**.**" in glob for glob in globs))
    rule = sd.rule(*(".".join(_slotted(pieces)) for pieces in (side, other or ["v"])))
    try:
        made = sd.convert(tree, rule, rest="keep")
    except sd.errors.ConvertError as error:
        told = str(error)
        if "another way" not in told and "twice" not in told:
            assert "no leaf is named" in told
            assert sd.rename(tree, globs, missing_ok=True) == tree
        return
    assert made == sd.rename(tree, globs)
    moved = sd.convert(tree, rule, rest="drop")
    back = sd.convert(moved, rule.inverse())
    assert len(back) == len(moved)
    assert back.items() <= tree.items()


def _slotted(pieces):
    """Return a glob as the text of a rule: each star a slot of its own."""
    letters = iter("bcdefg")
    texts = {"**": "{{{}:**}}", "*": "{{{}}}"}
    return [texts[x].format(next(letters)) if x in texts else x for x in pieces]


FAULTS = ["missing", "strange", "shape", "dtype", "abstract"]


@given(st.data(), worlds(), st.sampled_from(FAULTS))
def test_what_does_not_fit_is_named_before_the_first_byte(data, world, kind):
    """A leaf that is missing, strange, or of another form than its partners."""
    tree = dict(world.leaves(world.source, torch.float32))
    assume(all(t.numel() for t in tree.values()))
    name = data.draw(st.sampled_from(sorted(tree)))
    bound = world.rule().bind(tree)
    assume(kind not in ("dtype", "abstract") or world.partners(name))
    if kind == "missing":
        del tree[name]
    elif kind == "strange":
        name += ".x"
        tree[name] = torch.ones(1)
    elif kind == "shape":
        tree[name] = tree[name].new_ones((*tree[name].shape, 2))
    elif kind == "dtype":
        tree[name] = tree[name].double()
    else:
        tree[name] = sd.Abstract.of(tree[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Assembly, "put_together", _never)
        with pytest.raises(sd.errors.ConvertError) as error:
            sd.convert(tree, bound)
    told = [name, *world.partners(name), name[:2]]
    assert any(other in str(error.value) for other in told)


def _never(_):
    raise AssertionError("a byte was made")
