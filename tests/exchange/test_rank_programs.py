"""Drawn programs on ranks do what they mean, and the oracle is not blind."""

import pytest
import torch
from hypothesis import given, settings
from oracle_ranks import gather
from rank_leaves import Way
from rank_programs import Program, full, part, turned
from rank_running import check
from rank_worlds import programs


@settings(max_examples=100, derandomize=True)
@given(programs())
def test_programs_on_ranks_do_what_they_mean(program):
    """By both wires, as a call and as a stream: results, ties, errors and plans."""
    check(program)


@settings(max_examples=25, derandomize=True)
@given(programs(2))
def test_programs_on_two_ranks_do_what_they_mean(program):
    """So do those of two."""
    check(program)


ROWS = Way((3, 2), (4,), (0, 1, 2, 3), ((0, 0),))


def test_a_program_that_a_person_can_read():
    """The text of a program runs, and its repr is that program."""
    program = Program(
        (f"w = part({ROWS}, torch.float32, 1)", "v = full((3, 2), torch.float32, 2)"),
        {"a": "{'w': w, 'tied': alias(w), 'n': 3}", "v": "{'w': v, 'tied': v, 'n': 0}"},
        "a",
        ("gather(ranks=2, into=tree('v'), bucket_bytes=8)",),
    )
    check(program)
    assert eval(repr(program), {"Program": Program}) == program


@pytest.mark.parametrize("step", ["gather()", "gather(ranks=0)", "gather(ranks=[3])"])
def test_a_wrong_result_is_seen(step):
    """Where the oracle is told of other data than ranks have, it is not content."""
    line = f"w = part({ROWS}, torch.float32, next(COUNT))"
    with pytest.raises(AssertionError, match="the result"):
        check(Program((line,), {"a": "{'w': w}"}, "a", (step,)))


def test_pieces_are_put_together():
    """Rows, the last of which is cut short, and the empty rest."""
    whole = full((3, 2), torch.float32, 1)
    trees = {rank: {"w": part(rank, ROWS, torch.float32, 1)} for rank in range(4)}
    assert [len(tree["w"].pieces[0]) for tree in trees.values()] == [1, 1, 1, 0]
    assert torch.equal(dict(gather(trees, ranks=3)[3].pairs)["w"], whole)


# -- programs that failed ----------------------------------------------------------


def test_one_element_travels_from_where_it_lies():
    """A view of one element is dense, whatever its stride."""
    half = Way((2,), (2,), (0, 1), ((0, 0),))
    line = f"b = part({half}, torch.complex64, 5, 'strided')"
    trees = {"b": "{'w': b}", "w": "{'w': full((2,), torch.complex64, 6)}"}
    step = "broadcast(into=tree('b'), bucket_bytes=1)"
    check(Program((line,), trees, "w", (step,), small=True))


BOTH = Way((8,), (4,), (0, 1, 2, 3), ((0, 0),))


def test_a_buffer_for_leaves_that_are_tied_on_one_rank_only():
    """What comes from other ranks may differ, so that one of them would be lost."""
    lines = (
        f"a = part({BOTH}, torch.float32, 1)",
        "v = full((8,), torch.float32, 2)",
    )
    trees = {"a": "{'x': a, 'y': alias(a, rank == 0, 1)}", "v": "{'x': v, 'y': v}"}
    check(Program(lines, trees, "a", ("gather(ranks=0, into=tree('v'))",)))


def test_leaves_for_a_buffer_that_is_one_on_some_ranks_only():
    """The source sees two targets, and another rank has one for both."""
    lines = (
        f"b = part({BOTH}, torch.float32, 1)",
        "w = full((8,), torch.float32, 2)",
    )
    trees = {"b": "{'x': b, 'y': alias(b, rank != 0)}"}
    trees["w"] = "{'x': w, 'y': alias(w, False, 1)}"
    check(Program(lines, trees, "w", ("broadcast(into=tree('b'))",)))


def test_what_is_dropped_later_was_balanced_with_the_rest():
    """A step after another acts on what that gives, whatever it leaves of it."""
    lines = (
        f"a = part({Way((8,), (4,), (0, 1, 2, 3), ((0, 0),))}, torch.float32, 1)",
        f"b = part({Way((4,), (4,), (0, 1, 2, 3), ((0, 0),))}, torch.float32, 2)",
    )
    steps = "gather(ranks='balanced')", "drop('w')"
    check(Program(lines, {"a": "{'w': a, 'v': b}"}, "a", steps))


@pytest.mark.parametrize("verify", [True, False])
def test_sets_that_exchange_a_leaf_send_it_in_pieces_of_one_size(verify):
    """A rank without a part of a leaf is asked, too: what it awaits is what comes."""
    alone, odd = Way((4, 128), (1,), (1,)), Way((4, 128), (2,), (1, 3), ((0, 0),))
    even = Way((4, 128), (2,), (0, 2), ((0, 0),))
    lines = (
        f"a = part({alone}, torch.uint8, 3)",
        f"b = part({odd} if rank in (1, 3) else {even}, torch.uint8, 3)",
        "w = full((4, 128), torch.uint8, 6)",
    )
    trees = {"a": "{'x': a}", "b": "{'x': b}", "w": "{'x': w}"}
    options = f"bucket_bytes=by(25, 24, 25, 24), verify={verify}"
    for start, step in (
        ("a", "gather(ranks=(0, 1), "),
        ("w", "broadcast(like=tree('b'), "),
    ):
        check(Program(lines, trees, start, (f"{step}{options})",), small=True))


def test_what_is_empty_has_its_own_shape_though_it_is_tied_elsewhere():
    """Of one element a rank holds nothing in two ways; it is one where it lies."""
    grid = Way((1, 1), (1, 4), (0, 1, 2, 3), ((0, 0), (1, 1)))
    lines = (
        f"a = part({Way((1, 1), (4,), (0, 1, 2, 3), ((0, 0),))}, torch.float32, 1)",
        f"b = met(a, part({grid}, torch.float32, 1))",
        "w = full((1, 1), torch.float32, 2)",
    )
    trees = {"a": "{'x': a, 'y': alias(a), 'z': b}"}
    trees["w"] = "{'x': w, 'y': alias(w), 'z': alias(w)}"
    check(Program(lines, trees, "w", ("distribute(like=tree('a'))",)))


@pytest.mark.parametrize("verb", ["distribute", "broadcast"])
def test_empty_parts_of_tied_leaves_are_tied(verb):
    """Or the ranks that hold nothing would no longer see them as the others do."""
    lines = (
        f"a = part({Way((2,), (4,), (0, 1, 2, 3), ((0, 0),))}, torch.float32, 1)",
        "w = full((2,), torch.float32, 2)",
    )
    trees = {"a": "{'x': a, 'y': alias(a)}", "w": "{'x': w, 'y': alias(w)}"}
    check(Program(lines, trees, "w", (f"{verb}(like=tree('a'))",)))


@pytest.mark.parametrize(
    "way",
    [Way((2, 2), (2,), (2, 3)), Way((2, 3, 2), (4,), (0, 1, 2, 3), ((0, 1),))],
    ids=["replicas", "shards"],
)
@pytest.mark.parametrize(
    "step", ["gather()", "gather(ranks=0)", "gather(ranks='balanced')"]
)
def test_a_square_and_its_transposed(way, step):
    """Replicas stay tied also where they come from others, by their order in memory."""
    lines = (f"a = part({way}, torch.int64, 0)", "b = turned(a)")
    check(Program(lines, {"a": "{'x': b, 'y': a}"}, "a", (step,)))


@pytest.mark.parametrize("bucket", [1, 4096])
def test_what_stays_is_tied_after_the_steps_that_follow(bucket):
    """A window may end between two leaves of one memory that do not travel."""
    lines = ("a = full((3,), torch.float32, 1)",)
    trees = {"a": "{'x': a, 'y': alias(a)}"}
    check(Program(lines, trees, "a", (f"gather(bucket_bytes={bucket})", "copy()")))


@pytest.mark.parametrize("ways", [0, 1, 2])
def test_what_is_left_out_lies_in_what_is_written(ways):
    """It passes on with that, whatever stands first: new data, and tied."""
    lines = (f"b = part({BOTH}, torch.float32, 1)", "w = full((8,), torch.float32, 2)")
    trees = {"b": "{'a': alias(b), 'x': b}", "w": "{'x': w}"}
    for verb in ("broadcast", "distribute"):
        step = f"{verb}(into=tree('b'), strict=False)"
        check(Program(lines, trees, "w", (step, "copy()"), ways=ways))


def test_what_does_not_fit_is_told_in_as_many_bytes_by_all():
    """Whether two names are one thing in memory differs from rank to rank."""
    trees = {"b": "{'w': 3}", "w": "{'w': {'w': 3}, 'more': 1}"}
    step = "broadcast(like=tree('b'), strict=False)"
    check(Program((), trees, "w", (step,)))


def test_a_source_has_no_need_of_the_targets_of_others():
    """Nor does it judge what stands beside the tensors of those that it lacks."""
    lines = tuple(f"{name} = scaled((), torch.half, 1, 0.5)" for name in "bw")
    trees = {"b": "{'w': b} if rank == 0 else {}", "w": "{'w': w}"}
    step = "broadcast(like=tree('b'), src=1, strict=False)"
    check(Program(lines, trees, "w", (step,)))


@pytest.mark.parametrize("ranks", ["None", "3", "'balanced'"])
def test_a_leaf_and_its_transpose_are_tied_when_they_are_whole(ranks):
    """The one lies in rows and the other in columns, of one memory on each rank."""
    trees = {"a": "{'x': a, 'y': turned(a)}"}
    line = f"a = part({ROWS}, torch.float32, 1)"
    check(Program((line,), trees, "a", (f"gather(ranks={ranks})",)))
    whole = full((3, 2), torch.float32, 1)
    pieces = {rank: {"w": part(rank, ROWS, torch.float32, 1)} for rank in range(4)}
    both = {rank: {**x, "t": turned(x["w"])} for rank, x in pieces.items()}
    made = dict(gather(both)[0].pairs)
    assert torch.equal(made["t"], whole.t())
    assert made["t"].data_ptr() == made["w"].data_ptr()


SETS = tuple(Way((3, 2), (2,), ranks, ((0, 0),)) for ranks in ((0, 2), (1, 3)))


def test_a_stage_of_a_pipeline_sends_what_it_has():
    """To a rank of another set, or of none, where it joins the tree."""
    lines = (
        f"a = part({SETS}, torch.float32, 1)",
        f"b = part({SETS[1]}, torch.float32, 2)",
    )
    trees = {"a": "{'x': a, **({'y': {'w': b}} if rank in (1, 3) else {})}"}
    for ranks in (0, 1, [0, 3], None, "balanced"):
        check(Program(lines, trees, "a", (f"gather(ranks={ranks!r})",)))


def test_each_set_keeps_the_ties_that_it_sees():
    """Also where another leaf has the sets tell each other of all that they have."""
    rows = [Way((4,), (2,), ranks, ((0, 0),)) for ranks in ((0, 1), (2, 3))]
    lines = (
        f"a = part({tuple(rows)}, torch.float32, 1)",
        f"b = part({tuple(rows)}, torch.float32, 2)",
        f"c = part({Way((4,), (4,), (0, 1, 2, 3), ((0, 0),))}, torch.float32, 3)",
    )
    trees = {"a": "{'x': a, 'y': alias(a), 'z': a}"}
    trees["b"] = "{'x': b, 'y': alias(b, rank < 2), 'z': c}"
    check(Program(lines, trees, "a", ("redistribute(like=tree('b'))",)))


def test_a_tie_within_a_set_is_kept_though_its_members_go_to_other_ranks_there():
    """Where another leaf has the sets tell each other of all that they have."""
    sets = tuple(Way((3, 2), (2,), ranks, ((0, 0),)) for ranks in ((0, 1), (2, 3)))
    lines = (
        f"a = part({sets}, torch.float32, 1)",
        f"b = part({sets[1]}, torch.float32, 2)",
    )
    trees = {"a": "{'x': a, 'xx': alias(a), **({'y': b} if rank > 1 else {})}"}
    check(Program(lines, trees, "a", ("gather(ranks=pair_in_length)",)))


@pytest.mark.parametrize("is_one", [True, False])
def test_a_rank_that_holds_nothing_fills_each_of_its_buffers(is_one):
    """Where leaves are tied on all others, and it has one for both, or for each."""
    lines = (
        f"a = part({ROWS}, torch.float32, 1)",
        "v = full((3, 2), torch.float32, 2)",
        "b = alias(a, rank != 3)",
        f"w = alias(v, {is_one})",
    )
    trees = {"a": "{'n': 3, 'x': a, 'y': b}", "v": "{'n': 0, 'x': v, 'y': w}"}
    check(Program(lines, trees, "a", ("gather(ranks=3, into=tree('v'))",)))


def test_a_rank_sees_the_ties_of_whole_targets_that_it_holds_no_source_of():
    """The one element comes from elsewhere; what it goes into is this rank's own."""
    one = Way((1,), (4,), (0, 1, 2, 3), ((0, 0),))
    lines = (f"a = part({one}, torch.float32, 1)", "b = full((1,), torch.float32, 2)")
    trees = {"a": "{'x': a, 'y': alias(a)}", "b": "{'x': b, 'y': alias(b, rank != 1)}"}
    check(Program(lines, trees, "a", ("redistribute(like=tree('b'))",)))


@pytest.mark.parametrize("verb", ["distribute", "redistribute", "broadcast"])
def test_buffers_are_one_where_a_rank_holds_nothing_of_either(verb):
    """It has a part of what comes, and loses nothing of it there: no rank refuses."""
    lines = (
        f"a = part({Way((3, 2), (4,), (0, 1, 2, 3))}, torch.float32, 1)",
        f"b = part({ROWS}, torch.float32, 2)",
        "w = full((3, 2), torch.float32, 1)",
    )
    start = "a" if verb == "redistribute" else "w"
    trees = {start: f"{{'x': {start}, 'y': alias({start}, False, 1)}}"}
    trees["b"] = "{'x': b, 'y': alias(b, rank == 3)}"
    check(Program(lines, trees, start, (f"{verb}(into=tree('b'))",)))


SENDERS = {
    "all": Way((3, 2), (4,), (0, 1, 2, 3)),
    "one": Way((3, 2), (4,), (0, 1, 2, 3), blocks=(((0, 0), (3, 2), 3),)),
    "sets": (Way((3, 2), (2,), (0, 1)), Way((3, 2), (2,), (2, 3))),
}


@pytest.mark.parametrize("who", SENDERS)
@pytest.mark.parametrize("other", ["alias(a)", "alias(a, False, 1)", "c"])
def test_one_buffer_takes_what_ranks_send_that_have_none_of_it(who, other):
    """They see no tie, holding nothing of it, and tell if what they send differs."""
    part = f"part({SENDERS[who]}, torch.float32"
    lines = (
        f"a = {part}, 1)",
        f"c = {part}, 3)",
        f"b = part({ROWS}, torch.float32, 2)",
    )
    trees = {"a": f"{{'x': a, 'y': {other}}}", "b": "{'x': b, 'y': alias(b)}"}
    check(Program(lines, trees, "a", ("redistribute(into=tree('b'))",)))


@pytest.mark.parametrize("verify", [True, False])
def test_ranks_that_lack_a_leaf_they_share_are_not_waited_for(verify):
    """Not even where what each is about to do is not compared."""
    lines = (f"b = part({BOTH}, torch.float32, 1)", "w = full((8,), torch.float32, 2)")
    trees = {"b": "{'x': b} if rank in (0, 2) else {}", "w": "{'x': w}"}
    step = f"broadcast(like=tree('b'), src=2, verify={verify})"
    check(Program(lines, trees, "w", (step,)))


def test_a_slab_of_rows_that_come_from_two_ranks_each():
    """What lies in one stretch travels by itself, and the rest goes by a bucket."""
    grid = Way((6, 4), (2, 2), (0, 1, 2, 3), ((0, 0), (1, 1)))
    line = f"a = part({grid}, torch.float32, 1)"
    check(Program((line,), {"a": "{'w': a}"}, "a", ("gather(bucket_bytes=64)",)))


def test_a_tie_that_some_see_is_balanced_at_the_first_of_its_paths():
    """Whatever each of its members is: the order is that of the paths."""
    boxed, plain = (f"Way((), (4,), (0, 1, 2, 3), boxed={x})" for x in (True, False))
    lines = (
        f"a = part({boxed}, torch.float32, 1)",
        f"b = met(a, part({plain}, torch.float32, 1))",
        "c = alias(a, rank != 1)",
        f"d = met(c, part({plain}, torch.float32, 1))",
        "e = alias(b, rank != 1)",
    )
    trees = {"a": "{'0': a, 'w': c, '1': d, 'b': e}"}
    check(Program(lines, trees, "a", ("gather(ranks='balanced')",)))


@pytest.mark.parametrize("how", ["like", "into"])
def test_leaves_of_other_sets_are_not_tied_on_a_rank_that_has_both_alone(how):
    """Of what comes from several sets none sees all: a tie is one for all or none."""
    one = "(Way((), (2, 1), (0, 1)), Way((), (1,), (2,)), Way((), (1,), (3,)))"
    other = "(Way((), (1,), (0,)), Way((), (2,), (1, 2)), Way((), (1,), (3,)))"
    lines = (
        f"a = part({one}, torch.int64, 6)",
        f"c = met(a, part({other}, torch.int64, 6))",
        "b = part(Way((), (4,), (0, 1, 2, 3)), torch.int64, 7)",
    )
    trees = {"a": "{'w': a, 0: c}", "b": "{'w': b, 0: alias(b)}"}
    check(Program(lines, trees, "a", (f"redistribute({how}=tree('b'))",)))


def test_sets_that_hold_other_tensors_at_one_path_are_not_balanced():
    """Of one tensor each but one would be lost."""
    one, other = Way((6,), (1,), (0,)), Way((), (1,), (1,))
    lines = tuple(
        f"{name} = part({way}, torch.float32, 1)"
        for name, way in zip("ab", (one, other), strict=True)
    )
    trees = {"a": "{'w': a if rank == 0 else b}"}
    check(Program(lines, trees, "a", ("gather(ranks='balanced')",), size=2))


@pytest.mark.parametrize("ways", [0, 1, 2])
@pytest.mark.parametrize("how", ["", "strided", "turned"])
def test_a_bool_arrives_with_its_bytes(how, ways):
    """Whatever byte stands for True, in columns, rows, and the other way round."""
    line = f"a = part({ROWS}, torch.bool, 1, '{how}')"
    trees = {"a": "{'x': a, 'y': turned(a), 'z': alias(a, False)}"}
    for step in ("gather()", "gather(ranks=1, bucket_bytes=2)"):
        check(Program((line,), trees, "a", (step,), ways=ways))


def test_what_stays_is_not_compared():
    """A target for which no rank has anything, whoever has it."""
    way = "Way((8,), (4,), (0, 1, 2, 3))"
    lines = (f"b = part({way}, torch.float32, 1)", "w = full((8,), torch.float32, 2)")
    trees = {"b": "{'x': b} if rank == 0 else {}", "w": "{'w': w}"}
    check(Program(lines, trees, "w", ("distribute(like=tree('b'), strict=False)",)))


def test_what_comes_from_another_set_is_marked_as_there():
    """Whatever mark the rank has that receives it, which holds nothing of it."""
    one = "part(Way((4,), (1,), (0,)), torch.float32, 1"
    lines = (f"a = {one})", f"b = {one}, '', grad=True)")
    trees = {"a": "{'x': b if rank == 0 else a}"}
    check(Program(lines, trees, "a", ("gather(ranks=1)",)))


def test_ranks_that_share_as_many_leaves_at_other_paths_do_not_meet():
    """With nothing compared each would send its own for what the other has."""
    line = f"a = part({BOTH}, torch.float32, 1)"
    trees = {"a": "{'x': a} if rank in (0, 1) else {'a longer name': a}"}
    step = "gather(ranks=0, bucket_bytes=8, verify=False)"
    check(Program((line,), trees, "a", (step,)))


def test_a_leaf_of_one_set_is_not_tied_to_one_of_several():
    """Whichever of their paths comes first."""
    one, sets = (
        "Way((), (4,), (0, 1, 2, 3))",
        tuple(Way((), (1,), (r,)) for r in range(4)),
    )
    for first, then in (("a", "z"), ("z", "a")):
        lines = (
            f"a = part({one}, torch.float32, 1)",
            f"c = met(a, part({sets}, torch.float32, 1))",
            f"b = part({one}, torch.float32, 2)",
        )
        trees = {"a": f"{{'{first}': a, '{then}': c}}"}
        trees["b"] = f"{{'{first}': b, '{then}': alias(b)}}"
        check(Program(lines, trees, "a", ("redistribute(like=tree('b'))",)))


def test_a_buffer_for_two_is_one_for_the_leaf_that_is_not_dropped():
    """Though not all ranks have it for both."""
    lines = (
        f"b = part({BOTH}, torch.float32, 1)",
        "c = alias(b, rank < 2)",
        "w = full((8,), torch.float32, 2)",
    )
    trees = {"b": "{'x': b, '0': c}", "w": "{'x': w, '0': alias(w)}"}
    steps = "distribute(into=tree('b'))", "drop('0', missing_ok=True)"
    check(Program(lines, trees, "w", steps))


def test_a_mesh_with_groups_of_a_leaf_that_not_all_ranks_have():
    """Ranks make groups together: one that has no such leaf does not stay away."""
    way = Way((3, 4), (2, 1, 2), (0, 1, 2, 3), ((1, 0),), (0,))
    lines = (f"a = part({way}, torch.int64, 8)", "b = full((4,), torch.int64, 9)")
    trees = {"a": "{'x': b if rank == 3 else a}"}
    check(Program(lines, trees, "a", ("equal(tree('a'))",)))


def test_a_part_without_elements_and_data_of_what_is_balanced():
    """Whether it lacks data is not told, though nothing of it would move."""
    way = Way((1,), (2,), (0, 1), ((0, 0),))
    line = f"a = part({way}, torch.float32, 0, 'meta' if rank == 1 else '')"
    step = "gather(ranks='balanced')"
    check(Program((line,), {"a": "{'w': a}"}, "a", (step,), size=2))


def test_a_leaf_that_would_lie_on_a_rank_which_has_another():
    """The ranks share nothing: one of them stops, and the other goes on."""
    way = Way((), (1,), (0,))
    lines = (f"a = part({way}, torch.float32, 0)", "b = full((), torch.float32, 1)")
    trees = {"a": "{'x': b if rank == 0 else a}"}
    check(Program(lines, trees, "a", ("gather()", "stop(0)"), size=2))


def test_what_is_dropped_later_is_not_written_into_what_others_lie_in():
    """A target that the source lacks shares memory with one that is dropped."""
    lines = ("b = full((3,), torch.float32, 1)", "w = full((3,), torch.float32, 2)")
    trees = {"b": "{'x': b, 'y': alias(b)}", "w": "{'x': w}"}
    steps = "distribute(into=tree('b'), strict=False)", "drop('x')"
    check(Program(lines, trees, "w", steps, size=2))


def test_a_target_that_the_source_lacks_is_tied_on_one_rank_only():
    """It is not written: those that are one on all ranks are so still."""
    lines = (
        f"b = part({Way((6, 64), (2,), (0, 1))}, torch.int64, 1)",
        "c = alias(b, rank != 1)",
        "w = full((6, 64), torch.int64, 2)",
    )
    trees = {"b": "{'w': b, 'b': alias(b), 0: {'w': c}}"}
    trees["w"] = "{'w': w, 'b': alias(w)}"
    step = "distribute(into=tree('b'), strict=False)"
    check(Program(lines, trees, "w", (step,), size=2))


def test_what_is_dropped_later_is_neither_compared_nor_has_a_buffer():
    """Nothing of it moves, whatever ranks have of it, and however they ask for it."""
    lines = (
        f"a = part({Way((), (2,), (0, 1))}, torch.int64, 0)",
        "v = full((), torch.int64, 1)",
    )
    trees = {"a": "{'x': 3, **({'w': a} if rank == 0 else {})}"}
    steps = "gather()", "drop('w', missing_ok=True)"
    check(Program(lines, trees, "a", steps, size=2))
    trees = {"a": "{'w': a}", "v": "{'w': v}"}
    step = "gather(ranks=1, into=tree('v'), bucket_bytes=by(25, 24))"
    check(Program(lines, trees, "a", (step, "drop('w')"), size=2))


def test_sets_of_ranks_that_are_apart_have_targets_of_their_own():
    """One has a part of its own target, and the other all of one that is whole."""
    lines = (
        f"a = part({Way((0, 2), (1,), (0,))}, torch.float32, 0)",
        f"b = part({Way((1,), (1,), (1,))}, torch.float32, 1)",
        "v = full((1,), torch.float32, 2)",
    )
    trees = {"a": "{'w': a if rank == 0 else b}", "v": "{'w': a if rank == 0 else v}"}
    check(Program(lines, trees, "a", ("redistribute(like=tree('v'))",), size=2))


@pytest.mark.parametrize("how", ["like", "into"])
def test_what_comes_whole_is_one_however_it_is_asked_for(how):
    """As a replica on each rank, or as a tensor that is of no rank's layout."""
    rows = Way((7,), (2,), (0, 1), ((0, 0),))
    blocks = Way((7,), (2,), (0, 1), blocks=(((0,), (4,), 0), ((4,), (3,), 1)))
    lines = (
        f"a = part({rows}, torch.int64, 0)",
        f"c = met(a, part({blocks}, torch.int64, 0))",
        f"b = part({Way((7,), (2,), (0, 1))}, torch.int64, 1)",
        "d = met(b, full((7,), torch.int64, 1))",
    )
    trees = {"a": "{'w': a, 'x': c}", "b": "{'w': b, 'x': d}"}
    check(Program(lines, trees, "a", (f"redistribute({how}=tree('b'))",), size=2))
