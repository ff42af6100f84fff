"""What must hold of a file or a text that may come from anyone."""

import tempfile
from pathlib import Path

from oracle import OURS

import sdtree as sd


def check_spec(text):
    """A text is refused by an error of ours, or is a spec that works."""
    try:
        spec = sd.TreeSpec.from_json(text)
    except ValueError as error:
        assert str(error).startswith("not the JSON of a TreeSpec"), error
        return
    except OURS:
        return
    try:
        tree = spec.make(list(range(len(spec))))
        assert sd.leaves(tree) == list(range(len(spec)))
        assert sd.structure(tree) == spec
        str(spec)
        assert sd.TreeSpec.from_json(spec.to_json()) == spec
    except OURS as error:
        raise AssertionError("a spec that was accepted fails later") from error


def check_file(data):
    """A file is refused by an error of ours, or is loaded and shown."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".pt", ".safetensors"):
            target = Path(folder) / f"t{suffix}"
            target.write_bytes(data)
            for mapped in (False, True):
                try:
                    tree = sd.load(target, mmap=mapped)
                    str(sd.show(tree))
                    sd.nbytes(tree)
                except OURS:
                    continue
