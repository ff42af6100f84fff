"""The rows of directories of DCP: looked at, and converted to one file."""

import gc
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed.checkpoint as dcp
from ranks import Pool, pool
from torch.distributed.checkpoint._consolidate_hf_safetensors import (
    consolidate_safetensors_files,
)
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import sdtree as sd
from benchmarks.race import Row, Work, race, row_of
from benchmarks.world import PATIENCE
from sdtree.io import convert_file, open_file

TWICE = 2.0
COUNT = 64


def show(tiny: bool) -> Row:
    """Compare a look with what torch takes to read the metadata alone."""
    with TemporaryDirectory() as folder:
        sd.save({f"w{k}": torch.ones(1) for k in range(40 if tiny else 40_000)}, folder)
        reader = dcp.FileSystemReader(folder)
        found = race(
            {
                "read_metadata": _collecting(reader.read_metadata),
                "ours": _collecting(lambda: str(sd.show(open_file(folder).tree))),
            },
            1 if tiny else 7,
        )
    raw = found["read_metadata"]
    ratio = found["ours"].median / raw.median
    limit = {"read_metadata": raw}
    return Row(found["ours"], limit, ratio=ratio, target=TWICE, at_least=False)


def _collecting(run: Callable[[], object]) -> Callable[[], object]:
    """Return what runs with the garbage collector on, as it does for users.

    It takes most of the time that many new objects take, and looks at all that a
    process has imported, too.
    """

    def run_so() -> object:
        gc.unfreeze()
        gc.enable()
        try:
            return run()
        finally:
            gc.disable()
            gc.freeze()

    return run_so


def convert(tiny: bool) -> Row:
    """Compare with torch what makes one file of what four ranks have written."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "from ranks"
        _write(source, 2 if tiny else 4, (8, 4) if tiny else (2048, 2048), COUNT)
        return row_of(
            race(
                {
                    "copy": _anew(folder, "copy", partial(_copied, source)),
                    "torch": _anew(folder, "all.pt", partial(_by_torch, source)),
                    "ours": _anew(folder, "all.safetensors", partial(_ours, source)),
                },
                1 if tiny else 5,
            ),
            target=1.0,
        )


def consolidate(tiny: bool) -> Row:
    """Compare with torch what makes one file, each of what ranks write for it.

    For torch those are the safetensors files of its own storage for Hugging Face.
    """
    with TemporaryDirectory() as folder:
        source, parts = Path(folder) / "from ranks", Path(folder) / "parts"
        size, shape = (2, (8, 4)) if tiny else (4, (2048, 2048))
        _write(source, size, shape, COUNT)
        _write(parts, size, shape, COUNT, as_parts=True)
        return row_of(
            race(
                {
                    "copy": _anew(folder, "copy", partial(_copied, source)),
                    "torch": _anew(folder, "whole", partial(_consolidated, parts)),
                    "ours": _anew(folder, "all.safetensors", partial(_ours, source)),
                },
                1 if tiny else 5,
            ),
            target=1.0,
        )


def _write(
    folder: Path,
    size: int,
    shape: tuple[int, int],
    count: int,
    *,
    as_parts: bool = False,
) -> None:
    ranks = pool(size) if size == 2 else Pool(size)
    try:
        ranks.run(_save, folder, shape, count, as_parts, timeout=PATIENCE)
    finally:
        if size != 2:
            ranks.stop()


def _save(folder: Path, shape: tuple[int, int], count: int, as_parts: bool) -> None:
    """Write tensors of which each rank has some rows, by torch."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    part = torch.ones(shape[0] // mesh.size(), shape[1])
    state = {
        f"w{k}": DTensor.from_local(part.clone(), mesh, [Shard(0)])
        for k in range(count)
    }
    parts = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(state, checkpoint_id=folder, storage_writer=parts if as_parts else None)


def _anew(
    folder: str, name: str, write: Callable[[Path], object]
) -> Callable[[], object]:
    """Return what writes a file that is not there before."""

    def run() -> None:
        path = Path(folder) / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        write(path)

    return run


def _copied(source: Path, path: Path) -> None:
    with path.open("wb") as file:
        for part in sorted(source.iterdir()):
            with part.open("rb") as data:
                shutil.copyfileobj(data, file, 2**20)


def _by_torch(source: Path, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(source, path)


def _consolidated(parts: Path, path: Path) -> None:
    path.mkdir()
    in_one = {f"w{k}": 1 for k in range(COUNT)}
    consolidate_safetensors_files(str(parts), str(path), in_one)


def _ours(source: Path, path: Path) -> None:
    convert_file(source, path, sd.identity)


WORKS = {
    "show a DCP directory, 40,000 leaves": Work(show, "speed"),
    "convert a DCP directory of 4 ranks, 1 GiB": Work(convert, "speed"),
    "convert it, and consolidate torch's safetensors": Work(consolidate, "speed"),
}
