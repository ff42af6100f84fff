"""What a leaf is beside its tensors, a scale say, goes with it from rank to rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_leaves import Scaled
from shards import me, said, shard, together, whole

import sdtree as sd
from sdtree.kinds.values import same_value


def scaled(number, start):
    return Scaled(whole(3, start=start), float(number))


def quantized(number, start):
    values = whole(3, start=start)
    return torch.quantize_per_tensor(values, 1.0 + number, number, torch.quint8)


def by_channel(number, start):
    scales = torch.tensor([1.0, 2.0]) * (1 + number)
    zeros = torch.tensor([0, number])
    values = whole(2, 3, start=start)
    return torch.quantize_per_channel(values, scales, zeros, 0, torch.qint8)


def sparse(number, start):
    """Return a tensor that knows, or does not, that its places stand in order."""
    found = torch.sparse_coo_tensor(
        torch.tensor([[0, 2]]), whole(2, start=start), (4,), check_invariants=False
    )
    return found._coalesced_(bool(number % 2))


def wrapped(number, start):
    """Return a parameter over a quantized tensor, within the tree of a layer."""
    return torch.nn.Parameter(quantized(number, start), requires_grad=False)


KINDS = (scaled, quantized, by_channel, sparse, wrapped)
VERBS = (sd.broadcast, sd.distribute, sd.redistribute)
leaves = st.tuples(st.sampled_from(KINDS), st.integers(0, 1))
trees = st.lists(leaves, max_size=3)
choices = st.sampled_from(
    [(verb, "like") for verb in VERBS]
    + [(sd.broadcast, "into"), (sd.distribute, "into")]
)
STEPS = {"none": sd.identity, "copy": sd.copy(), "map": sd.map(lambda x: x)}


def made(tree, start):
    return {
        "w": shard(whole(5)),
        "each": [make(n, start) for make, n in tree],
        "step": start,
    }


def told(leaf):
    """Return all that a leaf is, as values that compare."""
    if isinstance(leaf, Scaled):
        return leaf.scale, leaf.data
    if leaf.is_sparse:
        return leaf.is_coalesced(), leaf._indices(), leaf._values()
    return leaf.qscheme(), leaf.dequantize()


def brought(tree, other, verb, name, before):
    """Return what comes of leaves on targets of another make, and what was to come."""
    source, target = made(tree, start=4), made(other, start=9 + me())
    if verb is not sd.redistribute:
        (source["w"],) = sd.leaves(sd.gather([source["w"]]))
    has_source = verb is not sd.broadcast or me() == 0
    options = {name: target}
    try:
        f = STEPS[before] | verb(**options)
        result = f(source if has_source else None)
    except (sd.errors.SpecMismatch, sd.errors.RankFailed) as error:
        return said(error)
    wanted = [told(make(n, 4)) for make, n in tree]
    return [result["step"], *map(told, result["each"])], [4, *wanted]


@settings(max_examples=25)
@given(
    trees,
    st.lists(st.integers(0, 1), min_size=3, max_size=3),
    choices,
    st.sampled_from([*STEPS]),
)
def test_what_a_leaf_is_beside_its_tensors_goes_along(tree, numbers, choice, before):
    """``like=`` takes the source's; ``into=`` refuses one that differs, as copy does.

    What a step makes of a leaf that cannot be foretold is not told to other ranks.
    """
    verb, name = choice
    other = [(make, n) for (make, _), n in zip(tree, numbers, strict=False)]
    fits = name == "like" or tree == other
    fits = not tree or (fits and (before, verb) != ("map", sd.broadcast))
    for found in together(brought, tree, other, verb, name, before):
        if isinstance(found, str):
            assert not fits
            assert "each." in found
        else:
            assert fits
            assert same_value(*found)


@given(leaves, st.integers(0, 1), st.sampled_from(["none", "copy"]))
def test_a_buffer_of_another_makeup_is_refused(leaf, number, before):
    """What is gathered into one would have its scale; ``copy(into=)`` says so too."""
    make, own = leaf
    source, buffer = {"w": make(own, 4)}, {"w": make(number, 0)}
    for verb in (sd.gather, sd.copy):
        f = STEPS[before] | verb(into=buffer)
        if number != own:
            with pytest.raises(sd.errors.SpecMismatch, match="w: "):
                f(source)
        else:
            [made] = sd.leaves(f(source))
            assert made is buffer["w"]
            assert same_value(told(made), told(source["w"]))


def test_a_buffer_of_another_kind_is_refused():
    for source, buffer in ((whole(3), scaled(1, 0)), (scaled(1, 0), whole(3))):
        with pytest.raises(sd.errors.SpecMismatch, match="w: kind"):
            sd.gather({"w": source}, into={"w": buffer})


def test_which_of_two_makeups_is_the_buffers_is_told():
    both = {"w": scaled(1, 0)}, {"w": scaled(2, 0)}
    for verb in (sd.gather, sd.distribute, sd.redistribute, sd.copy):
        with pytest.raises(sd.errors.SpecMismatch, match=r"w\W+1\.0 .*, 2\.0 in the"):
            verb(both[0], into=both[1])


def onto_another_kind(verb):
    """Return what is said of a kind that the target does not have."""
    source = {"w": scaled(1, 0)} if me() == 0 or verb is not sd.broadcast else None
    found = []
    for target in (whole(3), Scaled(whole(3), 1.0)):
        try:
            verb(source, like={"w": target})
            found.append("")
        except sd.errors.SpecMismatch as error:
            found.append(said(error))
    return found


def test_a_kind_does_not_become_another_one():
    """A tensor would lose the scale without a word."""
    for verb in VERBS:
        for refused, taken in together(onto_another_kind, verb):
            assert "kind Scaled in the source, Tensor in the target" in refused
            assert not taken
