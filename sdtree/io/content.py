"""Which format an open file is in, told by its content."""

from __future__ import annotations

from io import BufferedReader

from sdtree.errors import FileError
from sdtree.io.pt.file import ZIP

TAR = slice(257, 262)
"""Where a tar archive has its mark."""


def format_of(file: BufferedReader) -> str:
    """Return the name of the format of an open file, told by how it begins."""
    start = file.read(TAR.stop)
    head, mark = start[:9], start[TAR]
    file.seek(0)
    if not head:
        raise FileError(f"{file.name} is empty")
    if head.startswith(ZIP):
        return "pt"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    if head.startswith(b"\x80"):
        return "pt"
    if mark == b"ustar":
        raise FileError(
            f"{file.name}: a tar archive, as the first versions of torch wrote, which "
            "only unsafe loading reads; where you trust it, torch.save anew what "
            "torch.load(..., weights_only=False) gives"
        )
    raise FileError(
        f"{file.name}: neither a .pt nor a .safetensors file; it begins with {head!r}"
    )
