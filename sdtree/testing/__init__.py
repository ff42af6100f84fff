"""Hypothesis strategies for state dicts, and the laws as checks for what you add.

>>> from sdtree.testing import check_transform, trees
>>> check_transform(sd.drop("**.step", missing_ok=True), trees(), examples=5)
"""

from sdtree.testing.checks import assert_same as assert_same
from sdtree.testing.checks import check_leaf as check_leaf
from sdtree.testing.checks import check_one_leaf as check_one_leaf
from sdtree.testing.checks import check_transform as check_transform
from sdtree.testing.checks import check_transform_on as check_transform_on
from sdtree.testing.checks import snapshot as snapshot
from sdtree.testing.growing import containers as containers
from sdtree.testing.growing import selectors_of as selectors_of
from sdtree.testing.growing import trees as trees
from sdtree.testing.layouts import Blocked as Blocked
from sdtree.testing.layouts import Boxed as Boxed
from sdtree.testing.layouts import Meshed as Meshed
from sdtree.testing.layouts import blocks as blocks
from sdtree.testing.layouts import layouts as layouts
from sdtree.testing.layouts import meshes as meshes
from sdtree.testing.layouts import regions_of as regions_of
from sdtree.testing.modes import MODES as MODES
from sdtree.testing.modes import Setting as Setting
from sdtree.testing.modes import modes as modes
from sdtree.testing.ndarrays import arrays as arrays
from sdtree.testing.samples import Both as Both
from sdtree.testing.samples import Color as Color
from sdtree.testing.samples import Layer as Layer
from sdtree.testing.samples import Named as Named
from sdtree.testing.samples import Pair as Pair
from sdtree.testing.samples import Rows as Rows
from sdtree.testing.samples import State as State
from sdtree.testing.sharding import shards_of as shards_of
from sdtree.testing.sketches import Sketch as Sketch
from sdtree.testing.sketches import full_of as full_of
from sdtree.testing.sketches import sharded_of as sharded_of
from sdtree.testing.sketches import sharded_trees as sharded_trees
from sdtree.testing.sketches import sketches as sketches
from sdtree.testing.strategies import COMPLEX as COMPLEX
from sdtree.testing.strategies import DTYPES as DTYPES
from sdtree.testing.strategies import FLOATING as FLOATING
from sdtree.testing.strategies import INTEGRAL as INTEGRAL
from sdtree.testing.strategies import dense as dense
from sdtree.testing.strategies import keys as keys
from sdtree.testing.strategies import leaves as leaves
from sdtree.testing.strategies import odd_values as odd_values
from sdtree.testing.strategies import packed_tensors as packed_tensors
from sdtree.testing.strategies import paths as paths
from sdtree.testing.strategies import plain_values as plain_values
from sdtree.testing.strategies import quantized_tensors as quantized_tensors
from sdtree.testing.strategies import sparse_tensors as sparse_tensors
from sdtree.testing.strategies import subclass_tensors as subclass_tensors
from sdtree.testing.strategies import tensors as tensors
from sdtree.testing.viewing import views as views
