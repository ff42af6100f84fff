"""The laws of renaming, against what a name and a path mean, spelled out naively."""

import itertools
import re
from collections import OrderedDict, UserList, deque
from collections.abc import Mapping

from hypothesis import assume, given
from hypothesis import strategies as st

import sdtree as sd
from sdtree.naming.globs import escape
from sdtree.testing import trees
from sdtree.testing.samples import SEQUENCES, Layer, Pair


def parts(tree):
    """Return the keys of a container and what it has there; a leaf has none."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, Pair):
        return list(tree._asdict().items())
    if isinstance(tree, Layer):
        return list(vars(tree).items())
    if hasattr(type(tree), "n_sequence_fields"):  # of which some have no name
        fields = type(tree).__match_args__
        return list(zip((*fields, *range(len(fields), len(tree))), tree, strict=True))
    held = isinstance(tree, (list, tuple, deque, UserList))
    return list(enumerate(tree)) if held else []


def everything(tree, path=()):
    """Yield all that a tree has, itself included, with its path."""
    yield path, tree
    for key, part in parts(tree):
        yield from everything(part, (*path, key))


def ends(tree):
    """Return the path of all that holds nothing: leaves, holes, empty containers."""
    return [path for path, part in everything(tree) if not parts(part)]


def is_flat(tree):
    """Return whether a tree is one mapping from str to leaves."""
    return set(ends(tree)) == set(sd.paths(tree)) and all(
        isinstance(tree, Mapping) and isinstance(path[0], str) and len(path) == 1
        for path in ends(tree)
    )


class Edit:
    """What becomes of one segment, wherever a name begins with it and those above."""

    def __init__(self, kind, head, segment, new):
        self.kind, self.head, self.segment, self.new = kind, head, segment, new
        self.at = len(head)

    def __repr__(self):
        return f"{self.kind} {'.'.join([*self.head, self.segment])!r}, {self.new!r}"

    def finds(self, segments):
        return segments[: self.at + 1] == [*self.head, self.segment]

    def instead(self):
        made = {"change": [self.new], "add": [self.new, self.segment], "remove": []}
        return made[self.kind]

    def name(self, name):
        segments = name.split(".")
        if not self.finds(segments):
            return name
        return ".".join([*self.head, *self.instead(), *segments[self.at + 1 :]])

    def place(self, path):
        """Return in which key of a path the segment is, and where in it."""
        places = [
            (k, i, segment)
            for k, key in enumerate(path)
            for i, segment in enumerate(str(key).split("."))
        ]
        if not self.finds([segment for _, _, segment in places]):
            return None
        return places[self.at][:2]

    def path(self, path, flat):
        """Return the path of a leaf thereafter."""
        if self.place(path) is None:
            return path
        if flat:
            return (self.name(path[0]),)
        k, i = self.place(path)
        before, key, after = path[:k], path[k], path[k + 1 :]
        if self.kind == "add" and i == 0:
            return (*before, self.new, key, *after)
        texts = str(key).split(".")
        texts[i : i + 1] = self.instead()
        if not texts:
            return (*before, *after)
        return (*before, of_its_type(key, ".".join(texts)), *after)

    def rules(self, names):
        """Return the rule in each of its forms; a star in a new name is of a glob."""
        yield self.name
        old = ".".join([*self.head, self.segment])
        left = [*self.head, *self.instead()]
        new = ".".join(left)
        end = r"(?=\.|\Z)" if left else r"\."
        yield re.compile(r"\A" + re.escape(old) + end), new.replace("\\", "\\\\")
        if "*" not in new:
            below = ".".join([*left, "**"])
            yield f"{escape(old)}.**", below
            yield {f"{escape(old)}.**": below}
        if not any("*" in name for name in (*names, self.new)):
            yield {escape(n): self.name(n) for n in names if self.finds(n.split("."))}


def of_its_type(key, text):
    """Return a key whose text has changed: an int stays one if it can."""
    if str(key) == text:
        return key
    is_index = re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text)
    return int(text) if type(key) is int and is_index else text


@st.composite
def edits(draw, tree):
    """Draw an edit of a tree that can be told from every other by the names alone."""
    path = draw(st.sampled_from(sd.paths(tree)))
    segments = sd.names(tree)[sd.paths(tree).index(path)].split(".")
    at = draw(st.integers(0, len(segments) - 1))
    kind = draw(st.sampled_from(["change", "add", "remove"]))
    new = draw(st.sampled_from(["new", "77"]))
    every = {s for name in sd.names(tree) for s in name.split(".")}
    assume(new not in every)
    edit = Edit(kind, segments[:at], segments[at], new)
    twice = [*segments[: at + 1], segments[at]]
    names = [".".join(map(str, path)).split(".") for path in ends(tree)]
    assume(kind != "remove" or not any(n[: at + 2] == twice for n in names))
    assume(kind != "remove" or len(segments) > 1)
    return edit


def numbered(tree):
    """Return the tree with other leaves, each of them told from the others."""
    spec = sd.structure(tree)
    return spec.make(range(len(spec)))


def exact(path):
    return tuple((type(key), str(key)) for key in path)


def stand_in_the_way(paths):
    """Return whether one tree could not hold two of these paths."""
    return any(clash(p, q) for p, q in itertools.combinations(paths, 2))


def clash(p, q):
    """Return whether a path ends on the way to another, or their keys look alike."""
    pairs = zip(p, q, strict=False)
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return shared in (len(p), len(q)) or exact(p[:shared]) != exact(q[:shared])


def broken_sequences(tree, edit):
    """Return the paths of the sequences that would get a key that is no index."""
    changed = {p[: edit.place(p)[0]] for p in ends(tree) if edit.place(p)}
    found = {path: part for path, part in everything(tree) if path in changed}
    return {path for path, part in found.items() if not isinstance(part, Mapping)}


ZEROS = trees(st.just(0), portable=False, unique_names=True)


@given(st.data())
def test_only_the_part_that_changes_moves(data):
    """Names are as told; keys before and behind stay, in whatever form it is told."""
    tree = numbered(data.draw(ZEROS))
    assume(sd.paths(tree) not in ([], [()]))
    edit = data.draw(edits(tree))
    names = [edit.name(name) for name in sd.names(tree)]
    paths = [edit.path(path, is_flat(tree)) for path in sd.paths(tree)]
    every = [edit.path(path, is_flat(tree)) for path in ends(tree)]
    leaves = {*map(exact, sd.paths(tree))}
    rest = [path for path in ends(tree) if exact(path) not in leaves]
    is_crowded = len(set(names)) < len(names) or stand_in_the_way(every)
    is_crowded = is_crowded or stand_in_the_way([*paths, *rest])  # told leaf by leaf
    expected = dict(zip(map(exact, paths), sd.leaves(tree), strict=True))
    for rule in edit.rules(sd.names(tree)):
        try:
            moved = sd.rename(tree, rule)
        except sd.errors.NameCollision as error:
            text = str(error)
            may_merge = edit.kind == "remove" and "_metadata" in text
            assert may_merge or is_crowded, (edit, rule)
            continue
        found = {exact(path): leaf for path, leaf in sd.items(moved)}
        assert found == expected, (edit, rule)
        told = dict(zip(sd.names(moved), sd.leaves(moved), strict=True))
        assert told == dict(zip(names, sd.leaves(tree), strict=True))
        if edit.kind != "remove" and not broken_sequences(tree, edit):
            inside = sd.where(lambda path, _: edit.place(path), sd.rename(rule))
            assert sorted(sd.names(inside(tree))) == sorted(names), (edit, rule)


@given(st.data())
def test_containers_go_on(data):
    """Those above and below what changes are of the type that they were of.

    But for a sequence that would hold what is no index, and for several in place of
    which there is one.
    """
    tree = numbered(data.draw(ZEROS))
    assume(sd.paths(tree) not in ([], [()]))
    edit = data.draw(edits(tree))
    try:
        moved = sd.rename(tree, edit.name)
    except sd.errors.NameCollision:
        assume(False)
    now = {exact(path): part for path, part in everything(moved)}
    held = [(path, part) for path, part in everything(tree) if parts(part)]
    places = [exact(edit.path(path, is_flat(tree))) for path, _ in held]
    broken = broken_sequences(tree, edit)
    for (path, part), place in zip(held, places, strict=True):
        if parts(now[place]) and path not in broken and places.count(place) == 1:
            assert type(now[place]) is type(part), (edit, path)


@given(st.data())
def test_elements_that_change_places(data):
    """A list or tuple stays one, with what moved at its new index."""
    inner = trees(st.just(0), portable=False, max_leaves=3).filter(sd.leaves)
    elements = data.draw(st.lists(inner, min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(elements))))
    tree = {"w": 0, "g": data.draw(st.sampled_from(SEQUENCES))(numbered(elements))}
    rule = {f"g.{i}.**": f"g.{k}.**" for i, k in enumerate(order)}
    moved = sd.rename(tree, rule)
    assert type(moved["g"]) is type(tree["g"])
    for i, k in enumerate(order):
        assert moved["g"][k] == tree["g"][i]
        assert sd.structure(moved["g"][k]) == sd.structure(tree["g"][i])


@given(st.data())
def test_an_element_that_leaves_and_comes_back(data):
    """It leaves a hole, and fills it again."""
    count = data.draw(st.integers(2, 4))
    sequence = data.draw(st.sampled_from(SEQUENCES))(range(count))
    k = data.draw(st.integers(0, count - 1))
    tree = {"g": sequence, "n": 0}
    away = sd.rename(tree, (f"g.{k}", "away"))
    assert away["away"] == k
    assert away["g"][k] is sd.ABSENT
    back = sd.rename(away, ("away", f"g.{k}"))
    assert sd.structure(back) == sd.structure(tree)
    assert sd.equal(back, tree)


@given(st.data())
def test_what_is_known_of_a_module_stays_with_what_it_holds(data):
    """In _metadata, the module right above a leaf has what it had, or nothing moves."""
    words = st.sampled_from(["a", "b", "module"])
    found = data.draw(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1))
    names = {".".join(segments) + ".w" for segments in found}
    heads = {tuple(x[:k]) for x in found for k in range(len(x) + 1)}
    modules = sorted(map(".".join, heads))
    tree = OrderedDict.fromkeys(sorted(names), 0)
    versions = st.integers(1, 2)
    known = {module: {"version": data.draw(versions)} for module in modules}
    tree._metadata = OrderedDict(known)
    edit = data.draw(edits(tree))
    assume(edit.segment != "w")
    for rule in edit.rules(names):
        try:
            moved = sd.rename(tree, rule)
        except sd.errors.NameCollision:
            assert edit.kind == "remove", (edit, rule)
            continue
        assert type(moved._metadata) is OrderedDict
        for name in names:
            above, there = name[:-2], edit.name(name).rpartition(".")[0]
            assert moved._metadata[there] == known[above], (edit, rule, name)
    assert tree._metadata == known
