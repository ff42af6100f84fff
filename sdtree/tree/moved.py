"""Modules and classes by the names that they had: what was pickled then has these."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

MOVED: Final = {
    "sdtree.alike": "sdtree.tree.alike",
    "sdtree.calls": "sdtree.kinds.calls",
    "sdtree.container": "sdtree.tree.containers",
    "sdtree.frozen": "sdtree.typing",
    "sdtree.io.foreign": "sdtree.io.pickles.foreign",
    "sdtree.nodes": "sdtree.tree.shape",
    "sdtree.placing": "sdtree.naming.placing",
    "sdtree.room": "sdtree.tensors.remake",
    "sdtree.rules": "sdtree.naming.rules",
    "sdtree.selectors": "sdtree.naming.selectors",
    "sdtree.stages": "sdtree.transform.stages",
    "sdtree.tree.nodes": "sdtree.tree.shape",
    "sdtree.treespec": "sdtree.tree.spec",
}

RENAMED: Final = {
    "sdtree.room": {"Room": "Allocator"},
    "sdtree.stages": {
        "Acting": "LeafStage",
        "Choosing": "SelectStage",
        "Communicating": "CollectiveStage",
        "Moving": "PathStage",
        "Whole": "TreeStage",
    },
}
"""What has another name in these modules today."""


class Mover(MetaPathFinder, Loader):
    """Finds a module where it stands now, when its old name is imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return what loads the module, None if the name is none of ours."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Have the module of today stand for the one that was to be."""
        today = import_module(MOVED[module.__name__])
        for old, new in RENAMED.get(module.__name__, {}).items():
            setattr(today, old, getattr(today, new))
        sys.modules[module.__name__] = today


sys.meta_path.append(Mover())


def stand_for(name: str) -> None:
    """Have a module stand for an old one, whose name is that of a function today.

    It is there before anyone imports it, and so never set in the place of that.
    """
    sys.modules[name] = import_module(MOVED[name])
