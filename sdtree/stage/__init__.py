"""Staging: snapshots of a tree on the host, in memory that is used again and again."""

from typing import TYPE_CHECKING, Any

from sdtree.stage.staged import Staged as Staged
from sdtree.stage.stager import Stager as Stager

if TYPE_CHECKING:
    from sdtree.stage.checkpoint import DCPStager as DCPStager
else:

    def __getattr__(name: str) -> Any:
        """Import what needs torch.distributed.checkpoint when it is asked for."""
        if name != "DCPStager":
            raise AttributeError(f"sdtree.stage has no {name!r}", name=name)
        from sdtree.stage.checkpoint import DCPStager

        return DCPStager


__all__ = ["DCPStager", "Staged", "Stager"]
