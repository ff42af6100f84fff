"""Buffers in what steps before read or write: a chain does what its steps do."""

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdtree as sd
from sdtree.errors import SpecMismatch

STEPS = {
    "new": lambda _: sd.map(lambda t: t + 1),
    "copy": lambda _: sd.copy(),
    "the same": lambda _: sd.cast(dtype=torch.float32),
    "into": lambda held: sd.copy(into=held) | sd.map(lambda t: t + 1),
}


@settings(max_examples=60)
@given(
    st.permutations("abc"),
    st.lists(st.sampled_from("abcxyz"), min_size=3, max_size=3, unique=True),
    st.permutations("xyz"),
    st.sampled_from([*STEPS]),
    st.sampled_from(["call", "stream", "prepared"]),
)
def test_buffers_may_lie_in_what_steps_before_read(order, into, before, step, how):
    """They have acted on all leaves then: how the tree is cut never shows."""

    def outcome(how):
        held = {k: torch.full((4,), float(i)) for i, k in enumerate("abcxyz")}
        tree = {k: held[k] for k in "abc"}
        first = sd.rename(dict(zip("abc", order, strict=True)))
        first |= STEPS[step](
            {k: held[name] for k, name in zip("abc", before, strict=True)}
        )
        write = sd.copy(
            into={k: held[name] for k, name in zip("abc", into, strict=True)}
        )
        calls = {
            "steps": lambda: write(first(tree)),
            "call": lambda: (first | write)(tree),
            "stream": lambda: {p[0]: t for p, t in (first | write).stream(tree)},
            "prepared": lambda: (first | write).prepare(tree)(tree),
        }
        try:
            made = calls[how]()
        except SpecMismatch:
            return "refused"
        return {k: made[k].tolist() for k in "abc"}, str(held)

    names = [f"sdtree.transform.run.{x}_BYTES" for x in ("WINDOW", "SLICE")]
    with patch(names[0], 8), patch(names[1], 8):
        assert outcome(how) == outcome("steps")


def test_what_lies_where_its_own_source_does_is_written_window_by_window():
    """A tree that is changed in place need not be there twice."""
    tree = {k: torch.ones(4) for k in "abc"}
    seen = []

    def act(t):
        seen.append([x.sum().item() for x in tree.values()])
        return t * 2

    with patch("sdtree.transform.run.WINDOW_BYTES", 8):
        (sd.map(act) | sd.map(lambda t: t) | sd.copy(into=tree))(tree)
    assert seen == [[4, 4, 4], [8, 4, 4], [8, 8, 4]]
    assert all(torch.equal(t, torch.full((4,), 2.0)) for t in tree.values())
