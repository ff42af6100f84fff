"""What ranks tell each other beside data: what they will do, and whether they failed.

Before anything moves, each rank offers one digest for every set of ranks that a layout
in its tree names; it holds if every member of the set offered the same. All ranks see
all offers, so all come to the same verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, pairwise
from operator import itemgetter
from typing import Final, NamedTuple, NoReturn

from sdtree.errors import NameCollision, RankFailed, RankMismatch, text_of
from sdtree.path import where
from sdtree.tensors.modes import settled
from sdtree.typing import Key, Path
from sdtree.wire.collectives import RankGroup, gather_objects, gather_words, greatest
from sdtree.wire.disagreement import first_difference

Ranks = tuple[int, ...]

FIRST: Final = 7
"""How many offers fit into the first exchange; more take a second one."""

WELL, FAILED, AGAIN = range(3)
"""What a rank begins with: that it is well or not, or does once more what it did."""

Canonical = str
"""A path as all ranks know it: type and text of each key, no two paths the same."""

ALIKE: Final = (
    "call with the same tree and options on every rank that holds a part of these "
    "leaves"
)
"""What helps where ranks are not about to do the same."""

END: Final = "\1\1"
"""What no path has in it."""

ESCAPES: Final = (("\1", "\1b"), ("\0", "\1a"))


def canonical(path: Path) -> Canonical:
    """Return what orders paths alike on all ranks: types and text of the keys."""
    texts = [f"{type(key).__name__} {key!s}" for key in path]
    joined = "\0".join(texts)
    if "\1" not in joined and joined.count("\0") < max(len(texts), 1):
        return joined
    for char, escape in ESCAPES:
        texts = [text.replace(char, escape) for text in texts]
    return "\0".join(texts)


def check_names(ordered: Iterable[tuple[Canonical, Path]]) -> None:
    """Raise ``NameCollision`` if other ranks cannot tell one path from another.

    They are given in canonical order.
    """
    for (key, path), (other, second) in pairwise(ordered):
        if key == other and path != second:
            raise NameCollision(
                f"{path!r} and {second!r} are one path between ranks, which tell keys "
                "by their type and text; give them keys of other texts"
            )


def _path_of(canonical: Canonical) -> Path:
    """Return a path of another rank: keys of no common type as their text."""
    keys: list[Key] = []
    for text in canonical.split("\0") if canonical else ():
        for char, escape in reversed(ESCAPES):
            text = text.replace(escape, char)
        kind, _, text = text.partition(" ")
        keys.append(int(text) if kind == "int" else text)
    return tuple(keys)


class LeafSet(NamedTuple):
    """The leaves to which one and the same is to be done: paths, as known to all."""

    paths: list[Path]
    keys: list[Canonical]


@dataclass(slots=True)
class Fingerprint:
    """What a set of ranks is to do, and with which leaves, in canonical order.

    ``ties`` are the groups of paths that this rank would send as one. They need not be
    the same: what only some ranks see is no tie, but for those that are ``blind``,
    which hold nothing of a leaf.
    """

    leaf_sets: dict[str, LeafSet] = field(default_factory=dict[str, LeafSet])
    ties: list[list[Path]] = field(default_factory=list[list[Path]])
    blind: list[Path] = field(default_factory=list[Path])

    def add(self, text: str, leaf_set: LeafSet, is_blind: bool = False) -> None:
        """Add what is to be done with some leaves."""
        if is_blind:
            self.blind += leaf_set.paths
        known = self.leaf_sets.get(text)
        if known is not None:
            both = zip(
                known.keys + leaf_set.keys, known.paths + leaf_set.paths, strict=True
            )
            every = sorted(both, key=itemgetter(0))
            leaf_set = LeafSet([path for _, path in every], [key for key, _ in every])
        self.leaf_sets[text] = leaf_set

    def told(self) -> dict[Canonical, str]:
        """Return what is to be done at each path."""
        return {
            key: text
            for text, leaf_set in self.leaf_sets.items()
            for key in leaf_set.keys
        }

    def row(self, ranks: Ranks, verify: bool) -> Digest:
        """Return it in four numbers; of what is not compared the paths alone."""
        every = self.leaf_sets.items()
        if verify or not ranks:
            told = "".join(f"{x}\n{END.join(found.keys)}{END}" for x, found in every)
        else:
            told = END.join(sorted(chain(*(found.keys for _, found in every))))
        ties = [[*map(canonical, group)] for group in self.ties]
        return Digest(
            _number(str(ranks)), len(ranks), _number(told), _number(str(ties))
        )


class Digest(NamedTuple):
    """A fingerprint in numbers: of which ranks, how many, what leaf sets and ties."""

    ranks: int
    size: int
    leaf_sets: int
    ties: int


def _number(text: str) -> int:
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


NOBODY: Final = _number(str(()))
"""The number of no ranks at all."""


class Agreed(NamedTuple):
    """What the ranks agreed on: what each noted, and the ties that all of a set see.

    They ``are_apart`` if what they offered to whoever has it is not the same; ``key``
    is the number of all that they offered, the same on each.
    """

    notes: tuple[int, ...]
    ties: list[list[Path]]
    are_apart: bool = False
    key: int = 0


def agree(
    rank_group: RankGroup,
    fingerprints: Mapping[Ranks, Fingerprint],
    note: int = 0,
    *,
    verify: bool = True,
    advice: str = ALIKE,
) -> Agreed:
    """Return what each rank noted if all are about to do the same.

    Else every rank raises ``RankMismatch``; if one failed before, ``RankFailed``. To
    ``verify`` is to compare what is done at each path. What is offered to no ranks goes
    to those that have it, and need not be the same. ``advice`` is what an error says
    at last. Collective.
    """
    rows = [each.row(ranks, verify) for ranks, each in fingerprints.items()]
    notes, every = _exchange(rank_group, WELL, note, rows)
    key = _number(str(every))
    by_set: dict[int, list[Digest]] = {}
    for row in every:
        by_set.setdefault(row.ranks, []).append(row)
    open_to_all, are_apart = by_set.pop(NOBODY, []), False
    for found in by_set.values():
        if len({row.leaf_sets for row in found}) > 1 or len(found) != found[0].size:
            _raise_mismatch(rank_group, fingerprints, advice)
    if open_to_all:
        alike = len({row.leaf_sets for row in open_to_all}) == 1
        are_apart = not alike or len(open_to_all) != len(rank_group.ranks)
        by_set[NOBODY] = open_to_all
    if any(len({row.ties for row in found}) > 1 for found in by_set.values()):
        return Agreed(notes, _common_ties(rank_group, fingerprints), are_apart, key)
    ties = [
        group for fingerprint in fingerprints.values() for group in fingerprint.ties
    ]
    return Agreed(notes, ties, are_apart, key)


@settled
def join_as_failed(
    rank_group: RankGroup, error: BaseException, path: Path | None = None
) -> None:
    """Take part in the agreement with the word that this rank has failed.

    Collective; it returns, and the caller raises its own error.
    """
    _exchange(rank_group, FAILED, 0, [], error, path)


def all_fit(rank_group: RankGroup, key: int, error: BaseException | None) -> bool:
    """Return whether no rank found an error in what it is to do once more. Collective.

    If a rank is about to agree anew, or what was agreed on has another ``key`` there,
    all raise ``RankMismatch``.
    """
    rows = [Digest(key, 0, 0, 0)]
    notes, every = _exchange(rank_group, AGAIN, int(error is not None), rows, error)
    if any(notes):
        return False
    first, *_ = ranks = rank_group.ranks
    others = [ranks[k] for k, row in enumerate(every) if row != every[0]]
    if others:
        raise RankMismatch(
            f"{rank_group.text}: ranks {others} call another prepared transform than "
            f"rank {first}, and nothing was moved; call the same on every rank",
            (),
            (first, *others),
        )
    return True


def _exchange(
    rank_group: RankGroup,
    state: int,
    note: int,
    rows: Sequence[Digest],
    error: BaseException | None = None,
    path: Path | None = None,
) -> tuple[tuple[int, ...], list[Digest]]:
    """Return the notes and the rows of all ranks, if none failed."""
    every = gather_words(
        rank_group, [state, note, len(rows), *_flat(rows[:FIRST], FIRST)]
    )
    states = [words[0] for words in every]
    if FAILED in states:
        report_failures(rank_group, error, path, "before anything moved")
        return (), []
    if len({*states}) > 1:
        raise _in_two_ways(rank_group, states)
    parts = [words[3:] for words in every]
    most = max(words[2] for words in every)
    if most > FIRST:
        more = gather_words(rank_group, _flat(rows[FIRST:], most - FIRST))
        parts = [a + b for a, b in zip(parts, more, strict=True)]
    found = [
        Digest(*part[4 * k : 4 * k + 4])
        for words, part in zip(every, parts, strict=True)
        for k in range(words[2])
    ]
    return tuple(words[1] for words in every), found


def _in_two_ways(rank_group: RankGroup, states: Sequence[int]) -> RankMismatch:
    pairs = [*zip(rank_group.ranks, states, strict=True)]
    again, anew = ([rank for rank, x in pairs if x == s] for s in (AGAIN, WELL))
    return RankMismatch(
        f"{rank_group.text}: ranks {again} call what they have prepared, ranks {anew} "
        "the transform itself, and nothing was moved; call the same on every rank",
        (),
        (again[0], *anew),
    )


def _flat(rows: Sequence[Digest], count: int) -> list[int]:
    words = [word for row in rows for word in row]
    return words + [0] * (4 * count - len(words))


def _common_ties(
    rank_group: RankGroup, fingerprints: Mapping[Ranks, Fingerprint]
) -> list[list[Path]]:
    """Return the ties that every rank sees that holds a part of them. Collective.

    The paths of each stand in canonical order, whatever is done to them.
    """
    mine = {ranks: sight(fingerprint) for ranks, fingerprint in fingerprints.items()}
    every = gather_objects(rank_group, mine)
    shared: list[list[Path]] = []
    for ranks, fingerprint in fingerprints.items():
        sights: list[dict[Canonical, int]] = [x[ranks] for x in every if ranks in x]
        groups: dict[tuple[int, ...], list[Path]] = {}
        both = (
            zip(*leaf_set, strict=True) for leaf_set in fingerprint.leaf_sets.values()
        )
        in_order = sorted(chain.from_iterable(both), key=itemgetter(1))
        for i, (path, key) in enumerate(in_order):
            seen = tuple(sight.get(key, -1 - i) for sight in sights)
            if max(seen) > BLIND:
                groups.setdefault(seen, []).append(path)
        shared += [group for group in groups.values() if len(group) > 1]
    return shared


BLIND: Final = 0
"""What a rank sees of a leaf of which it holds nothing."""


def sight(fingerprint: Fingerprint) -> dict[Canonical, int]:
    """Return for each path the number of its tie, as far as a rank sees it."""
    found = {
        canonical(p): k for k, group in enumerate(fingerprint.ties, 1) for p in group
    }
    return found | dict.fromkeys(map(canonical, fingerprint.blind), BLIND)


# -- when they differ --------------------------------------------------------------


def _raise_mismatch(
    rank_group: RankGroup, fingerprints: Mapping[Ranks, Fingerprint], advice: str
) -> NoReturn:
    """Find the first path at which ranks of one set differ, and raise. Collective."""
    mine = {ranks: fingerprint.told() for ranks, fingerprint in fingerprints.items()}
    every = gather_objects(rank_group, mine)
    said: dict[Ranks, dict[int, dict[Canonical, str]]] = {}
    for rank, found in zip(rank_group.ranks, every, strict=True):
        for ranks, told in found.items():
            said.setdefault(ranks, {})[rank] = told
    differs = first_difference(said)
    if differs is None:
        raise RankMismatch(
            "ranks are not about to do the same, and nothing was moved; call with the "
            "same tree and options on every rank"
        )
    at, texts = differs
    first, *_ = texts
    others = [rank for rank in texts if texts[rank] != texts[first]]
    leaf_sets = (x for own in fingerprints.values() for x in own.leaf_sets.values())
    own = {key: path for x in leaf_sets for path, key in zip(*x, strict=True)}
    known = own.get(at) or _path_of(at)
    raise RankMismatch(
        f"ranks {first} and {others[0]} are not about to do the same, and nothing was "
        f"moved; at {where(known)} rank {first} has {texts[first]}, rank "
        f"{others[0]} has {texts[others[0]]}; {advice}",
        (known,),
        (first, *others),
    )


# -- when one failed ---------------------------------------------------------------


def settle(
    rank_group: RankGroup,
    error: BaseException | None,
    path: Path | None = None,
    when: str = "after ranks had begun to move data",
) -> None:
    """Return if no rank failed; else raise, but where the error is one's own.

    Collective.
    """
    [failed] = greatest(rank_group, [int(error is not None)])
    if failed:
        report_failures(rank_group, error, path, when)


def with_plain_keys(path: Path) -> Path:
    """Return a path as any process can read it: keys of other types as their text."""
    return tuple(key if type(key) in (int, str, bool) else str(key) for key in path)


def report_failures(
    rank_group: RankGroup, error: BaseException | None, path: Path | None, when: str
) -> None:
    """Raise ``RankFailed`` on ranks without an error of their own. Collective."""
    mine = None if error is None else (_told_of(error), path and with_plain_keys(path))
    every = gather_objects(rank_group, mine)
    if error is not None:
        return
    found = {r: said for r, said in zip(rank_group.ranks, every, strict=True) if said}
    rank, (text, at) = next(iter(found.items()))
    paths = tuple(at for _, at in found.values() if at is not None)
    place = f" at {where(at)}" if at is not None else ""
    raise RankFailed(
        f"rank {rank} failed{place}, {when}: {text}; see the error of that rank",
        paths,
        tuple(found),
    )


def _told_of(error: BaseException) -> str:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {text_of(error)}{notes}"
