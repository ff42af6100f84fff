"""The rules that ``--rules`` names: of a file, or of a model type of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

from sdtree.cli.recipe import rules_in
from sdtree.conversion.importing import from_transformers
from sdtree.conversion.rule import Rule

OF_TRANSFORMERS: Final = "transformers:"
"""What stands before a model type; a file of such a name is ./transformers:x."""


class Named(NamedTuple):
    """Rules, and notes of what goes by none of them, and why."""

    rules: Sequence[Rule]
    notes: Sequence[str] = ()


def rules_named(text: str, source: Path) -> Named:
    """Return the rules for what is in a checkpoint.

    Those of transformers go from its files to its models, and need the sizes that the
    ``config.json`` beside the checkpoint tells.

    >>> rules_named("transformers:llama", Path("no/folder"))
    Traceback (most recent call last):
    ValueError: --rules transformers:llama needs the sizes of the model, and no has ...
    """
    if not text.startswith(OF_TRANSFORMERS):
        return Named(rules_in(text))
    found = from_transformers(_config(text, source))
    return Named(
        found.rules,
        [f"{names}: goes by no rule of transformers; {why}" for names, why in found[1]],
    )


def _config(text: str, source: Path) -> Any:
    """Return the config beside a checkpoint, seen to be of the model type."""
    folder = source if source.is_dir() else source.parent
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--rules {text} needs the sizes of the model, and {folder} has no "
            "config.json; put there the one that came with it"
        )
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise ValueError(
            f"--rules {text} takes the rules from transformers, which is not "
            "installed; pip install transformers"
        ) from None
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    wanted = text.removeprefix(OF_TRANSFORMERS)
    if config.model_type != wanted:
        raise ValueError(
            f"--rules {text}: the model in {folder} is of type {config.model_type!r}; "
            f"give --rules {OF_TRANSFORMERS}{config.model_type}"
        )
    return config
