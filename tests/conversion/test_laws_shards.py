"""The laws of conversion on ranks: as whole leaves, whatever the layouts are."""

import torch
import torch.distributed as dist
from converted import laid_out, numbers, sharded, spoiled
from foretelling import as_foretold
from hypothesis import given
from hypothesis import strategies as st
from rank_laws import by_each_wire, laws, options
from shards import locals_of

import sdtree as sd
from sdtree.tensors.bits import same_bits
from sdtree.wire.collectives import record

DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn]


def assert_same(found, wanted):
    """Assert that this rank has what it should, and all of the kinds that it should."""
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        assert sd.Abstract.of(found[name]) == sd.Abstract.of(leaf), name
        both = zip(locals_of(found[name]), locals_of(leaf), strict=True)
        assert all(same_bits(*pair) for pair in both), name


def onto_layouts(world, how, dtype, **options):
    full = world.leaves(world.target, dtype)
    tree = sharded(world.leaves(world.source, dtype), how)
    before, wanted = sd.copy(tree), sharded(full, how)
    other = spoiled(full)
    bound = world.rule().bind(tree)
    group = dist.group.WORLD  # for leaves that happen to be whole
    convert = sd.convert(bound, like=sharded(other, how), group=group, **options)
    as_foretold(convert, tree)
    made = convert(tree)
    assert_same(made, wanted)
    into = sharded(other, how)
    found = sd.convert(tree, bound, into=into, group=group, **options)
    assert_same(found, wanted)
    assert all(x is into[name] for name, x in found.items())
    back = sd.convert(made, bound.inverse(), like=tree, group=group, **options)
    assert_same(back, tree)
    assert_same(tree, before)
    plan = sd.explain(convert, tree)
    assert world.is_told(plan)
    assert_lacking_alone_is_sent(world, how, plan, dtype)


def assert_lacking_alone_is_sent(world, how, plan, dtype):
    """Each rank receives the elements that it is to have and has not, and no more."""
    has = set().union(*numbers(world, world.source, how).values())
    for name, wanted in numbers(world, world.target, how).items():
        [row] = [row for row in plan.rows if row.to == (name,)]
        assert row.received == len(wanted - has) * dtype.itemsize, name


@laws
@given(laid_out(), st.sampled_from(DTYPES), options)
def test_onto_layouts_is_gather_convert_distribute(found, dtype, options):
    """And back; what is foretold is what travels; inputs stay as they are."""
    by_each_wire(onto_layouts, *found, dtype, **options)


def as_views(world, how, dtype):
    tree = sharded(world.leaves(world.source, dtype), how)
    rule = world.rule()
    with record() as traffic:
        made = sd.convert(tree, rule)
    assert not traffic.messages
    known = {t.untyped_storage()._cdata for x in tree.values() for t in locals_of(x)}
    for leaf in made.values():
        if isinstance(leaf, sd.Shards):
            held = [t for t in leaf.tensors if t.numel()]
            assert {t.untyped_storage()._cdata for t in held} <= known
    whole = sd.gather(made)
    for name, t in world.leaves(world.target, dtype).items():
        if not isinstance(whole[name], sd.Abstract):
            assert same_bits(whole[name], t)
    foretold = sd.convert(sd.spec(tree), rule)
    assert sd.similar(foretold, sd.spec(made))


@laws
@given(laid_out(), st.sampled_from(DTYPES))
def test_without_targets_nothing_is_sent_or_copied(found, dtype):
    """What comes are views, and together they are what whole leaves would be."""
    by_each_wire(as_views, *found, dtype)
