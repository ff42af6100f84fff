"""What must hold of a file or a text that may come from anyone."""

import tempfile
from pathlib import Path

from oracle import is_ours

import sdtree as sd


def _attempt(call, *args, **options):
    """Return what a call returns, and whether it was refused by an error of ours."""
    try:
        return call(*args, **options), False
    except Exception as error:
        if not is_ours(error):
            raise
        return error, True


def check_spec(text):
    """A text is refused by an error of ours, or is a spec that works."""
    spec, is_refused = _attempt(sd.TreeSpec.from_json, text)
    if is_refused:
        return
    str(spec)
    if len(spec) > 10_000:  # the text of a long list is short
        return
    leaves = list(range(len(spec)))
    tree = spec.make(leaves)
    assert sd.leaves(tree) == leaves
    assert sd.structure(tree) == spec
    assert sd.TreeSpec.from_json(spec.to_json()) == spec


def check_file(data):
    """A file is refused by an error of ours, or is loaded and shown."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".pt", ".safetensors"):
            target = Path(folder) / f"t{suffix}"
            target.write_bytes(data)
            for mapped in (False, True):
                tree, is_refused = _attempt(sd.load, target, mmap=mapped)
                if is_refused:
                    assert "\n" not in str(tree), "refused in several lines"
                    continue
                tree = {"file": tree}  # which may be a lone name of a file
                str(sd.show(tree))
                _attempt(sd.nbytes, tree)
