"""Torch's functions on state dicts by their own names, over the transforms of sdtree.

For those of ``torch/distributed/_state_dict_utils.py``, without the underscore: the
same signatures, and the same results where torch's are right.

>>> from sdtree import compat
>>> sd.compat.gather_state_dict({"w": torch.ones(2)}, cpu_offload=True)
{'w': tensor([1., 1.])}
"""

from sdtree.compat.collective import (
    all_gather_sharded_tensor as all_gather_sharded_tensor,
)
from sdtree.compat.collective import broadcast_state_dict as broadcast_state_dict
from sdtree.compat.collective import broadcast_tensors as broadcast_tensors
from sdtree.compat.collective import distribute_state_dict as distribute_state_dict
from sdtree.compat.collective import distribute_tensors as distribute_tensors
from sdtree.compat.collective import gather_state_dict as gather_state_dict
from sdtree.compat.flat import flatten_state_dict as flatten_state_dict
from sdtree.compat.flat import set_element as set_element
from sdtree.compat.flat import traverse_state_dict as traverse_state_dict
from sdtree.compat.flat import unflatten_state_dict as unflatten_state_dict
from sdtree.compat.local import CompanionMismatch as CompanionMismatch
from sdtree.compat.local import (
    check_state_dict_similarity as check_state_dict_similarity,
)
from sdtree.compat.local import copy_state_dict as copy_state_dict
from sdtree.compat.local import create_cpu_state_dict as create_cpu_state_dict
from sdtree.compat.local import iterate_state_dict as iterate_state_dict
from sdtree.compat.local import offload_state_dict_to_cpu as offload_state_dict_to_cpu
from sdtree.compat.patching import Patch as Patch
from sdtree.compat.patching import patch as patch
