"""A ``TreeSpec`` is what is left of a tree without its leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence, Sized
from typing import Final, final

from sdtree.path import check_sep, reject_collisions
from sdtree.text.showing import html_of, text_of
from sdtree.tree.plain_json import parse
from sdtree.tree.portable import dump_shape, load_shape
from sdtree.tree.shape import LEAF as LEAF
from sdtree.tree.shape import Node as Node
from sdtree.tree.shape import Shape as Shape
from sdtree.tree.shape import (
    count_of,
    from_rows,
    make_of,
    names_of,
    paths_of,
    rows_of,
    same_shape,
    take_apart,
)
from sdtree.tree.shape import node_of as node_of
from sdtree.typing import Leaf, Path, Tree


def take(tree: Tree) -> tuple[list[Leaf], TreeSpec]:
    """Return the leaves of a tree in path order, and its spec."""
    leaves, shape = take_apart(tree)
    return leaves, TreeSpec(shape, len(leaves))


@final
class TreeSpec:
    """The structure of a tree without its leaves: containers, keys, order, holes.

    Two specs are equal if types, keys, key order and what containers are beside their
    children (attributes, ``default_factory``, ``maxlen``) are.

    >>> sd.structure({"a": 1, "b": [2, 3]})
    TreeSpec({'a': *, 'b': [*, *]})
    """

    __slots__ = ("_count", "_names", "_paths", "shape")

    def __init__(self, shape: Shape, count: int | None = None) -> None:
        self.shape: Final = shape
        self._count = count
        self._paths: tuple[Path, ...] | None = None
        self._names: tuple[str, ...] | None = None

    @property
    def every_path(self) -> tuple[Path, ...]:
        """Return the path of every leaf, in order; found once, and kept.

        >>> sd.structure({"a": 1, "b": [2]}).every_path
        (('a',), ('b', 0))
        """
        if self._paths is None:
            self._paths = tuple(paths_of(self.shape))
        return self._paths

    def paths(self) -> list[Path]:
        """Return the path of every leaf, in order.

        >>> sd.structure({"a": 1, "b": [2]}).paths()
        [('a',), ('b', 0)]
        """
        return list(self.every_path)

    def names(self, sep: str = ".") -> list[str]:
        """Return the name of every leaf, in order; unlike ``sd.names``, unchecked.

        >>> sd.structure({0: 1, "0": 2}).names()
        ['0', '0']
        """
        if sep != ".":
            check_sep(sep)
            return names_of(self.shape, sep)
        if self._names is None:
            self._names = tuple(names_of(self.shape, sep))
        return list(self._names)

    def unique_names(self, sep: str = ".") -> list[str]:
        """Return the name of every leaf; raise ``NameCollision`` if two are alike.

        >>> sd.structure({"a": 1, "b": [2]}).unique_names()
        ['a', 'b.0']
        """
        found = self.names(sep)
        if len(set(found)) < len(found):
            reject_collisions(found, self.paths())
        return found

    def make(self, leaves: Iterable[Leaf]) -> Tree:
        """Return the tree of this structure with these leaves, given in order.

        >>> sd.structure({"a": 1, "b": [2]}).make([3, 4])
        {'a': 3, 'b': [4]}
        """
        given = leaves if isinstance(leaves, Sized) else list(leaves)
        if len(given) != len(self):
            raise ValueError(f"the spec has {len(self)} leaves, and {len(given)} came")
        return make_of(self.shape, iter(given))

    def to_json(self) -> str:
        """Return the spec as JSON text, which ``TreeSpec.from_json`` reads.

        Keys and attributes that JSON cannot say, and classes that were not given to
        ``register_container``, are refused by name.

        >>> sd.TreeSpec.from_json(sd.structure({0: [1]}).to_json())
        TreeSpec({0: [*]})
        """
        return json.dumps(dump_shape(self.shape))

    @staticmethod
    def from_json(text: str) -> TreeSpec:
        """Return the spec that ``to_json`` wrote; nothing is imported or run.

        >>> spec = sd.structure({"betas": (0.9, 0.999)})
        >>> sd.TreeSpec.from_json(spec.to_json()) == spec
        True
        """
        try:
            return TreeSpec(load_shape(parse(text)))
        except ValueError as error:
            raise ValueError(f"not the JSON of a TreeSpec: {error}") from error
        except RecursionError:
            raise ValueError("the JSON of a TreeSpec that is nested too deep") from None

    def __len__(self) -> int:
        """Return the number of leaves."""
        if self._count is None:
            self._count = count_of(self.shape)
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TreeSpec) and same_shape(self.shape, other.shape)

    def __hash__(self) -> int:
        return hash(tuple(x[:2] if isinstance(x, Node) else x for x in self._rows()))

    def __reduce__(self) -> tuple[object, ...]:
        return TreeSpec._of, (self._rows(),)

    def _rows(self) -> list[Shape]:
        return rows_of(self.shape)

    @staticmethod
    def _of(rows: Sequence[Shape]) -> TreeSpec:
        return TreeSpec(from_rows(rows))

    def __repr__(self) -> str:
        return f"TreeSpec({text_of(self)})"

    def _repr_html_(self) -> str:  # pyright: ignore[reportUnusedFunction]
        return html_of(self)
