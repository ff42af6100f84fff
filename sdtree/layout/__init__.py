"""Layouts: which ranks hold which boxes of a tensor, and the ways between them."""

from sdtree.layout.layout import Box as Box
from sdtree.layout.layout import Layout as Layout
from sdtree.layout.layout import Offsets as Offsets
from sdtree.layout.layout import Region as Region
from sdtree.layout.layout import Split as Split
from sdtree.layout.layout import meet as meet
from sdtree.layout.layout import mesh_layout as mesh_layout
from sdtree.layout.layout import whole as whole
