"""Before anything moves, the ranks agree; if they cannot, all of them raise at once.

After each such error the same ranks gather again: see ``caught``.
"""

import re
import time
from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import mesh
from shards import assert_works, caught, me, over, said, shard, together, whole
from torch import nn
from torch.distributed.tensor import Replicate, Shard

import sdtree as sd
from sdtree.errors import LayoutError, NoMatch, RankFailed, RankMismatch, SpecMismatch
from sdtree.wire.agreement import _path_of, canonical
from sdtree.wire.collectives import forced, record

FULL = whole(8, 4)


def model(**more):
    return {"model": {"w": shard(FULL), "b": shard(whole(5))}, **more}


@given(st.lists(st.integers() | st.text() | st.text("\0\1ab")).map(tuple))
def test_paths_of_other_ranks_are_told_as_they_are_there(path):
    assert _path_of(canonical(path)) == path


# -- ranks that are about to do different things -----------------------------------


def lacks_a_leaf():
    tree = model()
    if me() == 2:
        del tree["model"]["w"]
    return sd.gather(tree)


def has_a_leaf_more():
    return sd.gather(model(**({"extra": shard(FULL)} if me() == 2 else {})))


def has_another_key():
    name = "v" if me() == 2 else "w"
    return sd.gather({"model": {name: shard(FULL)}})


def has_a_key_of_another_type():
    return sd.gather({"model": {"0" if me() == 2 else 0: shard(FULL)}})


def has_another_shape():
    return sd.gather({"model": {"w": shard(whole(8, 5) if me() == 2 else FULL)}})


def has_another_dtype():
    full = FULL.double() if me() == 2 else FULL
    return sd.gather({"model": {"w": shard(full)}})


def has_another_layout():
    placement = Shard(1) if me() == 2 else Shard(0)
    return sd.gather({"model": {"w": shard(FULL, mesh((4,)), placement)}})


def has_another_mesh():
    line, square = mesh((4,)), mesh((2, 2))
    where = square if me() == 2 else line
    hows = [Shard(k) for k in range(where.ndim)]
    return sd.gather({"model": {"w": shard(FULL, where, *hows)}})


def has_fewer_ranks_in_its_mesh():
    few = over(1, 2)
    return sd.gather({"model": {"w": shard(FULL, few if me() == 2 else mesh((4,)))}})


def has_another_kind():
    w = shard(FULL)
    return sd.gather({"model": {"w": nn.Parameter(w) if me() == 2 else w}})


def has_it_whole():
    return sd.gather({"model": {"w": FULL if me() == 2 else shard(FULL)}})


def has_nothing_at_all():
    return sd.gather({} if me() == 2 else model())


def has_other_ranks():
    return sd.gather(model(), ranks=1 if me() == 2 else 0)


def has_other_ranks_for_one_leaf():
    odd = 3 if me() == 2 else 0
    return sd.gather(model(), ranks=lambda path: odd if path[-1] == "w" else 0)


def asks_for_balance():
    return sd.gather(model(), ranks="balanced" if me() == 2 else None)


def has_other_buckets():
    return sd.gather(model(), bucket_bytes=64 if me() == 2 else 1024)


def does_something_else():
    tree = model()
    if me() == 2:
        return sd.redistribute(tree, like=tree)
    return sd.gather(tree)


def drops_one():
    f = sd.drop("model.w") if me() == 2 else sd.identity
    return (f | sd.gather())(model())


def drops_one_afterwards():
    f = sd.drop("model.w") if me() == 2 else sd.identity
    return (sd.gather() | f)(model())


def casts_before():
    f = sd.cast(dtype=torch.bfloat16) if me() == 2 else sd.identity
    return (f | sd.gather())({"model": {"w": shard(FULL)}})


DIFFERENT = {
    lacks_a_leaf: ("model.w", r"rank 2 has nothing", r"rank 0 has .*\(8, 4\)"),
    has_a_leaf_more: ("extra", r"rank 0 has nothing", r"rank 2 has .*\(8, 4\)"),
    has_another_key: ("model.v", r"rank 0 has nothing", r"rank 2 has .*\(8, 4\)"),
    has_a_key_of_another_type: ("model.0", r"rank [02] has nothing", "rank [02] has g"),
    has_another_shape: ("model.w", r"rank 0 has .*\(8, 4\)", r"rank 2 has .*\(8, 5\)"),
    has_another_dtype: ("model.w", r"rank 0 has .*float32", r"rank 2 has .*float64"),
    has_another_layout: ("model.w", r"rank 0 has .*4 boxes", r"rank 2 has .*4 boxes"),
    has_another_mesh: ("model.w", r"rank 0 has .*4 boxes", r"rank 2 has .*4 boxes"),
    has_fewer_ranks_in_its_mesh: ("model.w", r"rank \d has .*4 ranks", r".*2 ranks"),
    has_it_whole: ("model.w", r"rank 0 has gather", r"rank 2 has nothing"),
    has_nothing_at_all: ("model.b", r"rank 0 has gather", r"rank 2 has nothing"),
    has_other_ranks: ("model.b", r"rank 0 has .*ranks \(0,\)", r"rank 2 .*\(1,\)"),
    has_other_ranks_for_one_leaf: ("model.w", r"ranks \(0,\)", r"ranks \(3,\)"),
    asks_for_balance: ("model.b", r"rank 0 has .*ranks \(0, 1", r"rank 2 .*balanced"),
    has_other_buckets: ("model.b", r"rank 0 has .*1024", r"rank 2 has .*\b64\b"),
    does_something_else: ("model.b", r"rank 0 has gather", r"rank 2 has redistribute"),
    drops_one: ("model.w", r"rank 0 has gather", r"rank 2 has nothing"),
    drops_one_afterwards: ("model.w", r"rank 0 has gather", r"rank 2 has nothing"),
    casts_before: ("model.w", r"rank 0 has .*float32", r"rank 2 has .*bfloat16"),
}


def failing(function):
    return caught(function)


@pytest.mark.parametrize("function", DIFFERENT, ids=lambda f: f.__name__)
def test_if_one_rank_differs_every_rank_says_where_and_how(function):
    """The error names the path, two ranks and what each has; nothing was moved."""
    name, *patterns = DIFFERENT[function]
    for error in together(failing, function):
        assert type(error) is RankMismatch
        assert f"at {name} " in str(error)
        assert "nothing was moved" in str(error)
        assert "on every rank" in str(error)
        for pattern in patterns:
            assert re.search(pattern, str(error)), (pattern, str(error))
        assert [".".join(map(str, path)) for path in error.paths] == [name]
        assert set(error.ranks) & {0, 1}
        assert 2 in error.ranks


def test_the_kind_of_a_leaf_may_differ_in_name_alone():
    """A Parameter of a DTensor is a DTensor."""
    assert together(failing, has_another_kind) == [None] * 4


def keyed_by_number():
    tree = {"state": {0: {"w": shard(FULL)}}}
    return sd.gather({} if me() == 1 else tree)


def test_the_paths_of_the_error_are_of_the_tree_on_every_rank():
    """Also on a rank that has no such path."""
    for error in together(failing, keyed_by_number):
        assert error.paths == (("state", 0, "w"),)


def differ_in_two_sets():
    one, other = over(0, 1), over(2, 3)
    tree = {"a": shard(FULL, one), "b": shard(FULL, other)}
    if me() in (1, 3):
        tree = {"a": shard(whole(9), one), "b": shard(whole(9), other)}
    return sd.gather(tree)


def test_of_several_differences_all_ranks_name_the_first():
    errors = together(failing, differ_in_two_sets)
    assert {str(error) for error in errors} == {str(errors[0])}
    assert errors[0].paths == (("a",),)
    assert set(errors[0].ranks) == {0, 1}


# -- operations with a target ------------------------------------------------------


def broadcast_from_two():
    like = {"w": shard(FULL), "n": 0}
    return sd.broadcast({"w": FULL, "n": 1}, like=like, src=me() % 2)


def broadcast_plain_values_from_two():
    return sd.broadcast({"n": me()}, like={"n": 0}, src=me() % 2)


def broadcast_here_and_gather_there():
    tree = {"n": me()}
    return sd.broadcast(tree, like=tree) if me() == 1 else sd.gather(tree)


def broadcast_with_other_strictness():
    like = {"w": shard(FULL), "v": shard(FULL)}
    return sd.broadcast({"w": FULL}, like=like, strict=me() != 1)


def broadcast_to_another_layout():
    like = {"w": shard(FULL, mesh((4,)), Replicate() if me() == 1 else Shard(0))}
    return sd.broadcast({"w": FULL}, like=like)


def broadcast_to_fewer_leaves():
    like = {"v": shard(FULL), "w": shard(FULL)}
    if me() == 1:
        del like["v"]
    return sd.broadcast({"v": FULL, "w": FULL}, like=like)


def redistribute_to_another_layout():
    like = {"w": shard(FULL, mesh((4,)), Replicate() if me() == 1 else Shard(1))}
    return sd.redistribute({"w": shard(FULL)}, like=like)


def distribute_to_another_layout():
    like = {"w": shard(FULL, mesh((4,)), Replicate() if me() == 1 else Shard(0))}
    return sd.distribute({"w": FULL}, like=like)


@pytest.mark.parametrize(
    "function",
    [
        broadcast_from_two,
        broadcast_plain_values_from_two,
        broadcast_here_and_gather_there,
        broadcast_with_other_strictness,
        broadcast_to_another_layout,
        broadcast_to_fewer_leaves,
        redistribute_to_another_layout,
        distribute_to_another_layout,
    ],
    ids=lambda f: f.__name__,
)
def test_targets_and_their_options_are_agreed_on(function):
    """Source, strictness, names and layouts; also where only plain values travel."""
    for error in together(failing, function):
        assert type(error) is RankMismatch
        assert "nothing was moved" in str(error)
        assert 1 in error.ranks
        assert error.paths


# -- what may differ ---------------------------------------------------------------


def differ_where_they_may():
    tree = {
        "w": shard(FULL),
        "rng": torch.full((me() + 1,), me()),
        "step": me(),
        f"own {me()}": [me()] * me(),
        "replicated": shard(torch.full((2,), me()), mesh((4,)), Replicate()),
    }
    made = sd.gather(tree)
    assert torch.equal(made["w"], FULL)
    assert sd.equal(made["rng"], tree["rng"])
    assert made["step"] == me()
    assert made[f"own {me()}"] == [me()] * me()
    assert made["replicated"].tolist() == [me()] * 2
    return [*made]


def test_what_does_not_communicate_may_differ():
    """Plain leaves, replicas and a rank's own state are not compared, nor merged."""
    found = together(differ_where_they_may)
    assert [keys[3] for keys in found] == [f"own {rank}" for rank in range(4)]


def in_other_order():
    names = ["b", "a", "c", 2, 10, "10"]
    want = {name: whole(8, start=100 * k) for k, name in enumerate(names)}
    names = names[me() :] + names[: me()]
    made = sd.gather({name: shard(want[name]) for name in names}, bucket_bytes=64)
    assert list(made) == names
    assert all(torch.equal(made[name], want[name]) for name in names)


def test_the_order_of_keys_may_differ():
    """What goes over the wire follows the paths, never the dict."""
    together(in_other_order)


def tied_on_some():
    x = shard(FULL)
    y = x if me() == 1 else shard(FULL)
    made = sd.gather({"a": x, "b": y, "c": x})
    assert all(torch.equal(made[k], FULL) for k in "abc")
    return sd.ties(made)


def test_a_tie_that_only_some_see_is_sent_as_leaves_of_their_own():
    """What all see stays a tie, and what one sees is none."""
    assert together(tied_on_some) == [[[("a",), ("c",)]]] * 4


# -- sets of ranks -----------------------------------------------------------------


def stages(wrong=None):
    """Two stages of a pipeline, each over two ranks, with leaves of their own."""
    first, second = over(0, 1), over(2, 3)
    if me() < 2:
        tree = {"layers": {0: {"w": shard(FULL, first)}}, "embed": shard(FULL, first)}
    else:
        tree = {"layers": {1: {"w": shard(FULL + 1, second)}}, "n": me()}
    if me() == wrong:
        tree["extra"] = shard(FULL, first if me() < 2 else second)
    return tree


def gather_stages():
    made = sd.gather(stages())
    assert torch.equal(made["layers"][me() // 2]["w"], FULL + me() // 2)
    assert_works()
    return sorted(made)


def test_stages_of_a_pipeline_have_leaves_of_their_own():
    first, second = ["embed", "layers"], ["layers", "n"]
    assert together(gather_stages) == [first, first, second, second]


def gather_unlike_stages(wrong):
    return caught(lambda: sd.gather(stages(wrong)))


@pytest.mark.parametrize("wrong", [0, 3])
def test_a_difference_within_one_set_is_raised_by_all(wrong):
    for error in together(gather_unlike_stages, wrong):
        assert type(error) is RankMismatch
        assert error.paths == (("extra",),)
        assert set(error.ranks) == ({0, 1} if wrong < 2 else {2, 3})


def rings(count, start):
    """Leaves over sets that overlap: each rank has a part in some of them."""
    tree = {}
    sets = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (1, 3), (0, 1, 2), (1, 2, 3)]
    sets += [(0, 2, 3), (0, 1, 3), (1, 2, 3, 0), (0,), (1,), (2,), (3,)]
    for k, ranks in enumerate(sets[:count]):
        leaf = shard(whole(9, 3, start=start + k), over(*sorted(ranks)))
        if me() in ranks:
            tree[f"{k}"] = {"w": leaf}
    return tree


def gather_rings(count, ranks, bucket_bytes):
    tree = rings(count, 5)
    made = sd.gather(tree, ranks=ranks, bucket_bytes=bucket_bytes)
    assert made.keys() == tree.keys()
    for k, leaf in made.items():
        assert torch.equal(leaf["w"], whole(9, 3, start=5 + int(k)))


@pytest.mark.parametrize("count", [4, 15])
@pytest.mark.parametrize("bucket_bytes", [16, 2**20])
def test_sets_of_ranks_may_overlap(count, bucket_bytes):
    """In a ring, and more of them than fit into the first word of the agreement."""
    together(gather_rings, count, None, bucket_bytes)


def gather_rings_but_one(last):
    tree = rings(15, 5)
    if me() == last:
        del tree["10"]
    return caught(lambda: sd.gather(tree))


def test_a_difference_in_one_of_many_sets_is_found():
    for error in together(gather_rings_but_one, 1):
        assert type(error) is RankMismatch
        assert 1 in error.ranks


def gather_but_one_is_empty():
    few = over(1, 2, 3)
    leaf = shard(FULL, few)
    made = sd.gather({} if me() == 0 else {"w": leaf})
    assert_works()
    return made == {} if me() == 0 else torch.equal(made["w"], FULL)


def test_a_rank_outside_a_mesh_may_call_with_an_empty_tree():
    assert together(gather_but_one_is_empty) == [True] * 4


def gather_off_the_mesh():
    few = over(1, 3)
    made = sd.gather({"w": shard(FULL, few), "n": me()})
    assert made["n"] == me()
    if me() in (1, 3):
        return torch.equal(made["w"], FULL)
    form = made["w"]
    return type(form) is sd.Abstract and (form.shape, form.dtype) == (
        (8, 4),
        torch.float32,
    )


def test_a_rank_outside_a_mesh_gets_an_abstract():
    """With the global shape and dtype."""
    assert together(gather_off_the_mesh) == [True] * 4


# -- groups ------------------------------------------------------------------------


@cache
def halves():
    """Return the groups of the first two ranks and of the others."""
    return dist.new_group([0, 1]), dist.new_group([2, 3])


def gather_in_groups():
    group = halves()[me() // 2]
    where = over(0, 1), over(2, 3)
    leaf = shard(FULL + me() // 2, where[me() // 2])
    made = sd.gather({"w": leaf, "n": me()}, group=group)
    assert torch.equal(made["w"], FULL + me() // 2)
    wrong = {"v": leaf} if me() == 3 else {"w": leaf}
    error = None
    try:
        sd.gather(wrong, group=group)
    except RankMismatch as found:
        error = found
    assert_works()
    return None if error is None else error.ranks


def test_groups_agree_each_for_itself():
    """A difference in one group is no matter for the ranks of the other."""
    none, nothing, *others = together(gather_in_groups)
    assert (none, nothing) == (None, None)
    assert [set(ranks) for ranks in others] == [{2, 3}, {2, 3}]


def gather_beyond_the_group():
    tree = {"model": {"w": shard(FULL)}}
    return caught(lambda: sd.gather(tree, group=halves()[me() // 2]))


def test_a_layout_that_names_ranks_outside_the_group_is_an_error():
    for rank, error in enumerate(together(gather_beyond_the_group)):
        assert type(error) is LayoutError
        assert str(error).startswith("model.w: ")
        outside = [2, 3] if rank < 2 else [0, 1]
        assert str(outside) in str(error)
        assert "group=" in str(error)


def one_beyond_the_group():
    group = halves()[me() // 2]
    mine = over(0, 1), over(2, 3)
    leaf = shard(FULL, mesh((4,)) if me() == 3 else mine[me() // 2])
    return caught(lambda: sd.gather({"w": leaf}, group=group))


def test_one_whose_layout_is_outside_the_group_tells_the_others():
    first, second, other, wrong = together(one_beyond_the_group)
    assert first is second is None
    assert type(wrong) is LayoutError
    assert type(other) is RankFailed
    assert other.ranks == (3,)


def call_from_outside():
    group = halves()[0]
    error = None
    try:
        sd.gather({"n": 1}, group=group)
    except ValueError as found:
        error = found
    assert_works()
    return error


def test_a_rank_outside_the_group_is_told_so():
    *inside, two, three = together(call_from_outside)
    assert inside == [None, None]
    for error in (two, three):
        assert "group=" in str(error)
        assert "not in it" in str(error)


def gather_from_two_by_collectives():
    with forced("collective"):
        sd.gather({"w": shard(FULL, over(1, 3))})
    return dist.new_group().group_name


def test_a_group_of_those_who_exchange_is_no_matter_for_groups_made_later():
    """All ranks name the next one alike, whether they made a group before or not."""
    assert len(set(together(gather_from_two_by_collectives))) == 1


# -- ranks that failed before ------------------------------------------------------


class Refusal(ValueError):
    """An error of our own."""


def refuse(*_):
    raise Refusal("not this one")


def refuse_w(path, leaf):
    return refuse() if path[-1] == "w" else leaf


def fail_in_a_selector():
    test = (lambda path, leaf: refuse()) if me() == 2 else (lambda path, leaf: True)
    return (sd.select(test) | sd.gather())(model())


def fail_to_match():
    return (sd.select("model.*" if me() != 2 else "modle.*") | sd.gather())(model())


def fail_in_a_map():
    f = sd.map_with_path(refuse_w) if me() == 2 else sd.map(lambda x: x)
    return (f | sd.gather())(model())


def fail_in_the_choice_of_ranks():
    return sd.gather(model(), ranks=refuse if me() == 2 else lambda path: 0)


def fail_with_a_layout():
    tree = model()
    if me() == 2:
        tree["model"]["w"] = shard(FULL)
        tree["model"]["w"]._local_tensor = torch.ones(1, 1)
    return sd.gather(tree)


def fail_with_an_unknown_leaf():
    return sd.gather(model(odd=object() if me() == 2 else 1))


def fail_to_fit_into():
    into = {"model": {"w": torch.zeros(8, 4), "b": torch.zeros(5)}}
    if me() == 2:
        into["model"]["w"] = torch.zeros(8, 5)
    return sd.gather(model(), into=into)


def fail_to_fit_like():
    like = {"w": shard(whole(9, 4) if me() == 2 else FULL)}
    return sd.distribute({"w": FULL}, like=like)


def fail_after_a_gather_that_is_done():
    tree = model()
    f = sd.map(refuse) if me() == 2 else sd.map(lambda x: x)
    return (sd.gather() | f | sd.gather())(tree)


def fail_between_two():
    """The first of both has no sharded leaf, so nobody hears in it who failed."""
    f = sd.map(refuse) if me() == 2 else sd.map(lambda x: x)
    g = sd.gather() | f | sd.distribute(like={"w": shard(FULL)})
    return g({"w": FULL})


def fail_after_one_that_moves_nothing():
    f = sd.map(refuse) if me() == 2 else sd.map(lambda x: x)
    return (sd.distribute(like={"w": shard(FULL)}) | f | sd.gather())({"w": FULL})


def fail_to_match_around_a_gather():
    name = "v" if me() == 2 else "w"
    return sd.where(name, sd.gather())({"w": shard(FULL)})


def fail_to_choose_by_group():
    f = sd.where("w", sd.map(refuse) if me() == 2 else sd.identity)
    return (f | sd.gather())({"w": shard(FULL)})


def fail_in_a_stream():
    f = sd.map_with_path(refuse_w) if me() == 2 else sd.map(lambda x: x)
    return list((f | sd.gather()).stream(model()))


def fail_at_the_source():
    f = sd.select("v.*") if me() == 2 else sd.identity
    return (f | sd.broadcast(like={"w": shard(FULL)}, src=2))({"w": FULL})


def fail_to_be_a_tree_at_the_source():
    tree = {"w": FULL, "odd": object()} if me() == 2 else None
    return sd.broadcast(tree, like={"w": shard(FULL), "odd": 0}, src=2)


class Unwritable:
    """A value that stays where it is."""

    def __reduce__(self):
        return refuse()


def fail_to_write_a_value():
    sd.register_leaf(Unwritable, flatten=lambda x: ((), x), unflatten=lambda x, _: x)
    like = {"w": shard(FULL), "f": 0}
    return sd.broadcast({"w": FULL, "f": Unwritable()}, like=like, src=2)


FAILED = {
    fail_in_a_selector: (Refusal, "not this one"),
    fail_to_match: (NoMatch, "modle"),
    fail_in_a_map: (Refusal, "model.w"),
    fail_in_the_choice_of_ranks: (Refusal, "model.w"),
    fail_with_a_layout: (LayoutError, "model.w"),
    fail_with_an_unknown_leaf: (sd.errors.UnknownLeaf, "odd"),
    fail_to_fit_into: (SpecMismatch, "model.w"),
    fail_to_fit_like: (SpecMismatch, "w"),
    fail_after_a_gather_that_is_done: (Refusal, "model.b"),
    fail_between_two: (Refusal, "at w"),
    fail_after_one_that_moves_nothing: (Refusal, "at w"),
    fail_to_match_around_a_gather: (NoMatch, "v"),
    fail_to_choose_by_group: (Refusal, "at w"),
    fail_in_a_stream: (Refusal, "model.w"),
    fail_at_the_source: (NoMatch, "v"),
    fail_to_be_a_tree_at_the_source: (sd.errors.UnknownLeaf, "odd"),
    fail_to_write_a_value: (Refusal, "at f"),
}


@pytest.mark.parametrize("function", FAILED, ids=lambda f: f.__name__)
def test_a_rank_that_failed_raises_its_own_error_and_the_others_tell_of_it(function):
    """They name the rank, and its error; and all is well at once."""
    kind, text = FAILED[function]
    errors = together(failing, function)
    own = errors.pop(2)
    assert isinstance(own, kind)
    assert not isinstance(own, (RankFailed, RankMismatch))
    assert text in said(own)
    for error in errors:
        assert type(error) is RankFailed
        assert error.ranks == (2,)
        assert "rank 2 failed" in str(error)
        assert str(own).splitlines()[0] in str(error)
        assert text in str(error)


@pytest.mark.parametrize(
    "function",
    [fail_in_a_map, fail_in_the_choice_of_ranks, fail_with_a_layout],
    ids=lambda f: f.__name__,
)
def test_the_others_know_the_path_where_a_rank_failed(function):
    errors = together(failing, function)
    del errors[2]
    for error in errors:
        assert len(error.paths) == 1
        assert error.paths[0][0] == "model"


def fail_on_two():
    f = sd.map(refuse) if me() in (1, 3) else sd.map(lambda x: x)
    return caught(lambda: (f | sd.gather())(model()))


def test_if_two_failed_each_raises_its_own():
    zero, one, two, three = together(fail_on_two)
    assert type(one) is type(three) is Refusal
    assert type(zero) is type(two) is RankFailed
    assert zero.ranks == two.ranks == (1, 3)


def refuse_for_all():
    return caught(lambda: (sd.select("nothing.here") | sd.gather())(model()))


def test_if_all_failed_each_raises_its_own():
    assert [type(error) for error in together(refuse_for_all)] == [NoMatch] * 4


def fail_again_and_again():
    """Errors of both sorts, one after the other, and then a gather."""
    found = []
    for function in [*DIFFERENT, *FAILED] * 2:
        try:
            function()
        except Exception as error:
            found.append(type(error))
    assert_works()
    return len(found)


def test_errors_leave_nothing_behind():
    wanted = 2 * (len(DIFFERENT) + len(FAILED))
    assert together(fail_again_and_again) == [wanted] * 4


# -- without it --------------------------------------------------------------------


def count_messages(verify, moves):
    leaf = shard(FULL) if moves else shard(FULL, mesh((4,)), Replicate())
    with record() as traffic:
        made = sd.gather({"w": leaf}, verify=verify)
    assert torch.equal(made["w"], FULL)
    return traffic.messages


@pytest.mark.parametrize("verify", [True, False])
def test_the_plan_is_agreed_on_in_one_exchange(verify):
    """One all_gather is the agreement; the rest is the data, and the last word.

    Without ``verify`` nothing is compared in it, and all hear of ties and failures.
    """
    for messages in together(count_messages, verify, True):
        assert messages["all_gather"] == 1
        assert messages["all_reduce"] == 1
        assert messages["send"] == messages["receive"] == 3


def test_what_is_whole_costs_the_agreement_alone():
    for messages in together(count_messages, True, False):
        assert messages["send"] == messages["receive"] == 0
        assert messages["all_gather"] == 1


EMPTY = whole(0, 4)


def exchange_nothing(wire):
    """Return what ranks sent each other for leaves that have no elements."""
    tree, other = {"w": shard(EMPTY)}, shard(EMPTY, mesh((4,)), Shard(1))
    full, like = {"w": EMPTY}, {"w": other}
    with forced(wire), record() as traffic:
        for f, given in (
            (sd.gather(), tree),
            (sd.gather(ranks=1), tree),
            (sd.redistribute(like=like), tree),
            (sd.distribute(like=like), full),
            (sd.broadcast(like=like), full),
        ):
            assert f(given)["w"].shape == (0, 4)
    return {*traffic.messages}


@pytest.mark.parametrize("wire", ["pairs", "collective"])
def test_what_has_no_elements_costs_the_agreement_alone(wire):
    for kinds in together(exchange_nothing, wire):
        assert kinds == {"all_gather", "all_reduce"}


def time_agreement(verify):
    tree = {f"{k}": shard(whole(4)) for k in range(50)}
    f = partial(sd.gather, tree, ranks=0, verify=verify)
    f()
    start = time.perf_counter()
    for _ in range(5):
        f()
    return time.perf_counter() - start


def test_many_calls_one_after_the_other_stay_in_step():
    """With and without an agreement: no word of one call is taken for the next's."""
    for verify in (True, False):
        assert all(spent < 10 for spent in together(time_agreement, verify))


# -- what the source has -----------------------------------------------------------


def load(how):
    """Load a tree in which ranks may differ but for the sharded leaf; count messages.

    ``how`` says what the source has beside it, or the target of rank 2.
    """
    full = {"w": FULL, "v": FULL.clone()}
    like = {"w": shard(FULL), "v": shard(FULL)}
    if "a value" in how:
        full["n"] = like["n"] = 7
    if "another value there" in how and me() == 2:
        like["m"] = 7
    if "a tie" in how:
        full["v"] = full["w"]
        like["v"] = like["w"]
    if "more" in how:
        full["extra"] = FULL
    if "off the mesh" in how:
        pair = over(0, 1)
        like["w"] = shard(FULL, pair) if me() < 2 else shard(whole(8, 5), pair)
    then = sd.select("w") if "a part" in how else sd.identity
    load = sd.broadcast(like=like, verify="unverified" not in how)
    with record() as traffic:
        made = (load | then)(full if me() == 0 else None)
    assert torch.equal(sd.gather(made["w"]), FULL)
    assert made.get("n", 7) == 7
    assert bool(sd.ties(made)) == ("a tie" in how)
    return dict(traffic.messages)


AGREED = {"all_gather": 1, "all_reduce": 1}
TOLD = {"all_gather": 1, "all_reduce": 2, "broadcast": 2}


@pytest.mark.parametrize(
    ("how", "collectives"),
    [
        ("all alike", AGREED),
        ("a value", TOLD),
        ("a tie", TOLD),
        ("a part", TOLD),
        ("unverified", TOLD),
    ],
)
def test_what_ranks_agree_on_need_not_be_told(how, collectives):
    """The source tells what it has where that does not follow from the agreement."""
    for messages in together(load, how):
        messages.pop("send", 0), messages.pop("receive", 0)
        assert messages == collectives


def load_noted():
    """Return of which leaves a step before makes others, and what is told of these."""
    full = {"n": 7, "w": whole(64, 64), "s": "text"}
    like = {"n": 0, "w": shard(whole(64, 64)), "s": "", "more": whole(2)}
    noted = []
    step = sd.map_with_path(lambda path, x: noted.append(*path) or x)
    with forced("pairs"), record() as traffic:
        (step | sd.broadcast(like=like, strict=False))(full if me() == 0 else None)
    return sorted(noted), traffic.nbytes["broadcast"]


def test_a_source_makes_each_leaf_once_and_tells_of_plain_ones_alone():
    """Their values go to all before anything moves; tensors go where they are to be."""
    (noted, told), *others = together(load_noted)
    assert noted == ["n", "s", "w"]
    assert told < whole(64, 64).nbytes / 4
    assert others == [([], told)] * 3


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("another value there", "m"),
        ("more", "extra"),
        ("off the mesh", "w (shape (8, 4)"),
    ],
)
def test_what_they_do_not_agree_on_has_all_of_them_raise(how, name):
    for error in together(failing, partial(load, how)):
        assert type(error) is SpecMismatch
        assert name in str(error)


def settles_how_often():
    tree = {f"{k}": shard(whole(8, 64)) for k in range(4)}
    with record() as traffic:
        sd.gather(tree, bucket_bytes=512)
    return traffic.messages["all_reduce"]


def test_ranks_settle_once_however_many_windows_there_are():
    """Within a few hundred MiB: each time all wait for the slowest."""
    assert together(settles_how_often) == [1] * 4
