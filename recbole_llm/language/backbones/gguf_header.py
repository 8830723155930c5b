"""Check the header of a GGUF file (llama.cpp's format) before a library trusts its numbers.

A damaged length or count would have the reader loop or allocate without end.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

from ...errors import UserError

# Codes of the types of metadata, by the letters of the module struct
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, ARRAY = 8, 9
NESTED, DIMENSIONS = 4, 8  # most levels of arrays in arrays, and dimensions of a tensor
ALIGNMENT = 32
# Numbers of an architecture that are the size of some tensor, of which the model is then built
SIZES = ("embedding_length", "feed_forward_length", "vocab_size", "head_count", "expert_count")

Shapes = dict[str, tuple[int, ...]]


class HeaderError(ValueError):
    """The header does not describe this file."""


class _Reader:
    """Reads numbers and texts one behind the other; none of them lies outside the file."""

    def __init__(self, data: Any):
        self.data, self.at, self.order = data, 0, "<"

    def number(self, kind: str) -> Any:
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: str, count: int) -> tuple:
        self.need(count * struct.calcsize(f"{self.order}{kind}"))
        values = struct.unpack_from(f"{self.order}{count}{kind}", self.data, self.at)
        self.at += struct.calcsize(f"{self.order}{count}{kind}")
        return values

    def text(self) -> str:
        size = self.number("Q")
        self.need(size)
        self.at += size
        return bytes(self.data[self.at - size : self.at]).decode("utf-8")

    def value(self, kind: int, level: int = 0) -> Any:
        """Read a value of the metadata; an array is skipped."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or level == NESTED:
            raise HeaderError(f"unknown type {kind} of a value")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALARS:
            size = count * struct.calcsize(f"{self.order}{SCALARS[inner]}")
            self.need(size)
            self.at += size
            return None
        self.need(8 * count)  # texts and arrays begin with their length
        for _ in range(count):
            self.value(inner, level + 1)
        return None

    def need(self, size: int) -> None:
        """Raise HeaderError if the file ends before so many bytes."""
        if size > len(self.data) - self.at:
            raise HeaderError(f"{size} bytes at {self.at} reach beyond the file's {len(self.data)}")


def check_header(path: Path) -> None:
    """Compare the header of a file with the file.

    Parameters
    ----------
    path : Path
        A GGUF file.

    Raises
    ------
    UserError
        If something in its header is wrong; it names the file.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Reader(data))
    # HeaderError and UnicodeDecodeError are ValueErrors
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise UserError(
            f"backbone {str(path.parent)!r}: {path.name} is damaged or no GGUF file: {error}"
        ) from None


def _check(reader: _Reader) -> None:
    if bytes(reader.data[:4]) != b"GGUF":
        raise HeaderError(f"expected GGUF at its begin, found {bytes(reader.data[:4])!r}")
    reader.at = 4
    if reader.number("I") & 0xFFFF == 0:  # the version, in big-endian order
        reader.at, reader.order = 4, ">"
        reader.number("I")
    tensors, pairs = reader.number("Q"), reader.number("Q")
    if not tensors:
        raise HeaderError("it holds no tensors")
    reader.need(pairs * 13 + tensors * 24)  # the least that they can take
    metadata = {}
    for _ in range(pairs):
        key, kind = reader.text(), reader.number("I")
        metadata[key] = reader.value(kind)
    shapes: Shapes = {}
    ends = []
    for _ in range(tensors):
        name, dimensions = reader.text(), reader.number("I")
        if dimensions > DIMENSIONS:
            raise HeaderError(f"tensor {name!r} has {dimensions} dimensions")
        shapes[name] = reader.numbers("Q", dimensions)
        kind, offset = reader.number("I"), reader.number("Q")
        ends.append((name, offset + _tensor_bytes(shapes[name], kind)))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= len(reader.data):
        raise HeaderError(f"general.alignment is {alignment}")
    begin = -(-reader.at // alignment) * alignment
    for name, end in ends:
        if begin + end > len(reader.data):
            raise HeaderError(f"tensor {name!r} reaches beyond the file's {len(reader.data)} bytes")
    _check_sizes(metadata, shapes)


def _tensor_bytes(shape: tuple[int, ...], kind: int) -> int:
    """Compute the bytes of a tensor; 0 where the package gguf is not installed."""
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        return 0
    elements = 1
    for size in shape:
        elements *= size
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return elements // block * block_bytes


def _check_sizes(metadata: dict[str, Any], shapes: Shapes) -> None:
    """Raise HeaderError for a model that is larger than the tensors of the file."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise HeaderError("general.architecture is missing")
    prefix = f"{architecture}."
    for key, value in metadata.items():
        if not key.startswith(prefix) or not isinstance(value, int):
            continue
        most = _largest_value(key.removeprefix(prefix), shapes)
        if most is not None and value > most:
            raise HeaderError(f"{key} is {value}, and its tensors have room for {most}")


def _largest_value(name: str, shapes: Shapes) -> int | None:
    """Return the largest value that the tensors allow a number; None for any value."""
    if name == "block_count":
        return len(shapes)
    if name.endswith(SIZES):
        return max(map(_longest_dimension, shapes.values()), default=0)
    if name == "context_length" and "position_embd.weight" in shapes:
        return max(shapes["position_embd.weight"])
    return None


def _longest_dimension(shape: tuple[int, ...]) -> int:
    return max(shape, default=0)
