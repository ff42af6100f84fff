"""What names of other libraries are called here, for those who try them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

_NANS: Final = (
    "sd.select(tree, sd.selector(torch.Tensor) & (lambda path, x: x.isnan().any()), "
    "missing_ok=True)"
)

_CALLS: Final = {
    "sd.map(fn, tree)": "apply tree_map map_structure map_only tree_map_only",
    "sd.map(fn, a, b)": (
        "tree_multimap zip tree_transpose add sub mul lerp ema axpy "
        "tree_add tree_sub tree_mul zip_with accumulate"
    ),
    "sd.map(lambda *xs: torch.stack(xs).mean(0), a, b)": (
        "average mean soup merge_checkpoints average_checkpoints interpolate"
    ),
    "sd.map(lambda *xs: torch.stack(xs), a, b)": (
        "stack cat concat concatenate stack_module_state"
    ),
    "sd.map(torch.zeros_like, a)": (
        "zeros_like tree_zeros_like zero zero_ ones_like full_like rand_like"
    ),
    "sd.map_with_path(fn, tree)": "named_apply tree_map_with_names map_with_names",
    "sd.whole(fn)": "tree_function stateless",
    "sd.leaves(tree)": (
        "tree_leaves values tree_iter parameters buffers tree_reduce reduce "
        "tree_sum tree_all tree_any tree_max tree_min tree_norm"
    ),
    "sd.items(tree)": (
        "named_tensors named_parameters tree_flatten_with_path named_leaves "
        "tree_leaves_with_path tree_flatten_with_names tree_items walk iterate"
    ),
    "sd.paths(tree)": "tree_paths tree_accessors tree_keypaths key_paths",
    "sd.names(tree)": "keys keystr tree_keys fqns get_fqns",
    "sd.flatten(tree)": (
        "tree_flatten flatten_keys flatten_dict flatten_state_dict ravel ravel_pytree"
    ),
    "sd.unflatten(flat, spec=spec)": (
        "tree_unflatten unflatten_keys unflatten_dict unflatten_state_dict unravel nest"
    ),
    "sd.structure(tree)": "tree_structure treespec treedef tree_spec pytree schema",
    "sd.combine(tree, other)": (
        "merge update union join tree_merge deep_merge deepmerge tree_combine"
    ),
    "sd.partition(tree, which)": "split split_keys separate divide filter_partition",
    "sd.select(tree, which)": (
        "filter keep subset only pick find search grep query tree_filter filter_keys "
        "filter_state_dict getitem get take subtree include match slice at"
    ),
    _NANS: "isnan is_nan find_nan find_nans has_nan isfinite check_nan",
    "sd.drop(tree, which)": "exclude remove delete pop omit discard prune without",
    "sd.where(which, transform)": (
        "mask masked tree_at tree_select tree_replace apply_to conditional filter_map"
    ),
    "sd.selector(which)": "glob pattern regex is_array",
    "sd.rename(tree, (pattern, replacement))": (
        "rename_key rename_key_ rename_keys replace map_keys remap remap_keys "
        "replace_keys sub substitute key_mapping move"
    ),
    "sd.prefix(tree, 'model')": "add_prefix prepend prefix_keys with_prefix",
    "sd.strip_prefix(tree, 'module')": (
        "strip lstrip remove_prefix removeprefix drop_prefix unwrap "
        "consume_prefix_in_state_dict_if_present clean_names"
    ),
    "sd.chain(*transforms)": "compose pipe pipeline sequential then",
    "sd.copy(tree)": "clone deepcopy detach snapshot clone_state_dict dup",
    "sd.copy(tree, into=buffers)": (
        "copy_ update_ copy_state_dict load_into assign write_into inplace"
    ),
    "sd.offload(tree)": "cpu to_cpu offload_to_cpu offload_state_dict pin pin_memory",
    "sd.offload(tree, share=True)": "share share_memory share_memory_",
    "sd.to(tree, device)": "cuda to_device device_put device move_to gpu onload",
    "sd.cast(tree, dtype=torch.bfloat16)": (
        "bfloat16 bf16 to_bf16 astype type dtype to_dtype convert_dtype quantize"
    ),
    "sd.cast(tree, dtype=torch.float16)": "half float16 fp16 to_half to_fp16",
    "sd.cast(tree, dtype=torch.float32)": "float float32 fp32 to_fp32 upcast",
    "sd.cast(tree, dtype=torch.float64)": "double float64",
    "sd.empty_like(tree)": "empty allocate new_empty create_cpu_state_dict",
    "sd.spec(tree)": "eval_shape shape shapes abstract meta to_meta ShapeDtypeStruct",
    "sd.show(tree)": (
        "print pprint summary describe view inspect tree_summary tree_pformat "
        "display info numel num_parameters count_parameters num_params param_count "
        "dump_tree ls stats count"
    ),
    "sd.nbytes(tree)": "size bytes num_bytes memory size_of sizeof footprint",
    "sd.ties(tree)": (
        "tied aliases shared find_tied_parameters find_shared_tensors shared_pointers"
    ),
    "sd.equal(a, b)": "same eq tree_equal is_equal identical bitwise_equal",
    "sd.diff(a, b)": (
        "allclose isclose is_close compare assert_close assert_equal tree_allclose "
        "delta difference max_diff"
    ),
    "sd.similar(a, b)": "compatible same_structure check_state_dict_similarity",
    "sd.load(path)": (
        "load_file open read safe_open load_safetensors load_state_dict_from_file "
        "torch_load load_checkpoint restore from_file from_pretrained open_file loads "
        "load_sharded_checkpoint"
    ),
    "sd.save(tree, path)": (
        "save_file write dump dumps store save_safetensors torch_save save_checkpoint "
        "save_model to_file export"
    ),
    "sd.save(tree, 'folder', shard_bytes='5GB')": (
        "save_pretrained save_torch_state_dict save_sharded split_torch_state_dict "
        "split_torch_state_dict_into_shards shard_checkpoint save_sharded_checkpoint"
    ),
    "sd.gather(tree, ranks=0)": (
        "all_gather full_tensor consolidate unshard full_state_dict all_gather_object "
        "gather_state_dict get_full_state_dict summon_full_params"
    ),
    "sd.distribute(a, like=b)": (
        "shard scatter distribute_tensor shard_state_dict distribute_state_dict"
    ),
    "sd.broadcast(a, like=b)": "broadcast_state_dict broadcast_object sync",
    "sd.redistribute(a, like=b)": "reshard relayout resharding",
    "sd.explain(transform, tree)": "dry_run estimate cost simulate profile",
    "sd.register_leaf(Kind, flatten=..., unflatten=...)": (
        "register_pytree_leaf register_kind register_tensor register_type"
    ),
    "sd.register_container(cls)": (
        "register register_pytree_node register_pytree_node_class register_dataclass "
        "register_node register_pytree_with_keys register_class"
    ),
    "sd.convert_file(path, 'new.pt', transform)": (
        "convert_checkpoint dcp_to_torch_save torch_save_to_dcp "
        "consolidate_safetensors_files"
    ),
    "model.state_dict()": (
        "state_dict get_state_dict get_model_state_dict from_module model_state_dict"
    ),
    "model.load_state_dict(tree)": (
        "load_state_dict set_state_dict set_model_state_dict load_model to_module"
    ),
    "transform.stream(tree)": "stream iter_windows lazy generate",
}
"""What to write, and what those call it who come from elsewhere.

That is from torch and its checkpoints, jax.tree, equinox, optree, safetensors,
tensordict, transformers, or from Python itself.
"""

MEANT: Final = {name: call for call, names in _CALLS.items() for name in names.split()}
"""What to write in the place of a name."""


def meant_by(name: str, known: dict[str, str]) -> str:
    """Return what to write for a name: what it means elsewhere, or what is spelt so.

    >>> meant_by("merge", {})
    'sd.combine(tree, other)'
    >>> meant_by("gater", {"gather": "sd.gather"})
    'sd.gather'
    """
    if found := MEANT.get(name):
        return found
    word = name.lower()
    close = [known[each] for each in get_close_matches(word, known, cutoff=0.75)]
    return " or ".join(close)
