"""GGUF: the header of a file, and where the bytes of its tensors lie.

Read by the `gguf` package, which ggml's own project keeps: it maps the file and reads no more than the header. Its
reader takes what lies beyond a file's end for nothing, and a damaged length for as many fields as it says: here it
stops at the end, and at the end of a possible header. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
Knows nothing of what the tensors are for.
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoadError
from .files import HEADER_LIMIT, MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS, StoredTensor, explain_read_errors

if TYPE_CHECKING:
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderTensor

SUFFIX = ".gguf"
MAGIC = b"GGUF"
PLAIN = ("F32", "F16", "BF16", "F64")  # numbers as they are
# Numbers in blocks, as diffusers decodes them on any device.
BLOCKS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor by the file's header. `shape`: the slowest dimension first, as torch has it; GGUF has it last."""

    stored: StoredTensor  # of blocks: as bytes, U8
    shape: tuple[int, ...]
    encoding: str


@dataclass(frozen=True)
class GgufHeader:
    tensors: tuple[GgufTensor, ...]  # in the order of their bytes
    architecture: str  # as `general.architecture` says: qwen_image, flux; "" where the file does not say
    data_start: int  # where the header ends


def require_package(label: str) -> None:
    """Refuse GGUF where the package that reads it is missing. Raises `LoadError`."""
    if importlib.util.find_spec("gguf") is None:
        raise LoadError(f"{label} is a GGUF file, and the package gguf that reads it is not installed on this worker")


def read_header(file: Path, label: str) -> GgufHeader:
    """The header of a GGUF file. Raises `LoadError` for a file that is damaged, cut short or of an unknown type."""
    require_package(label)
    with explain_read_errors(label):
        if file.stat().st_size < len(MAGIC):
            raise LoadError(f"{label} is corrupt: it is no GGUF file")
        try:
            reader: GGUFReader = reader_class()(file)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, UnicodeDecodeError) as error:
            raise LoadError(f"{label} is corrupt or cut short: {describe(error)}") from None
        if len(reader.tensors) > MAX_TENSORS:
            raise LoadError(f"{label} has {len(reader.tensors):,} tensors, and at most {MAX_TENSORS:,} are read")
        field = reader.get_field("general.architecture")
        architecture = str(field.contents())[:40] if field else ""
        tensors = [tensor_of(tensor, file, label) for tensor in reader.tensors]
    ordered = sorted(tensors, key=lambda tensor: tensor.stored.start)
    return GgufHeader(tuple(ordered), architecture, int(reader.data_offset))


@functools.cache
def reader_class() -> Any:
    """The package's reader, which refuses what is not there instead of going on with nothing."""
    import numpy
    from gguf import GGUFReader

    class BoundedReader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = int(offset) + numpy.dtype(dtype).itemsize * int(count)
            in_header = not hasattr(self, "data_offset")
            if end > len(self.data):
                raise ValueError(f"it has {len(self.data):,} bytes, and its header tells of {end:,}")
            if in_header and end > HEADER_LIMIT:
                raise ValueError(f"its header has more than the {HEADER_LIMIT:,} bytes that are read")
            return super()._get(offset, dtype, count, override_order)

    return BoundedReader


def tensor_of(tensor: "ReaderTensor", file: Path, label: str) -> GgufTensor:
    """A tensor as the worker's reader takes it. Raises `LoadError` naming one that is of a type that is not read."""
    name, encoding = tensor.name, tensor.tensor_type.name
    if len(name) > MAX_NAME or len(tensor.shape) > MAX_DIMENSIONS:
        raise LoadError(f"{label} is corrupt: a tensor has a name or a shape that no file has")
    shape = tuple(int(size) for size in reversed(tensor.shape))
    start, size = int(tensor.data_offset), int(tensor.n_bytes)
    if encoding in PLAIN:
        return GgufTensor(StoredTensor(name, file, start, size, encoding, shape), shape, encoding)
    if encoding not in BLOCKS:
        raise LoadError(
            f"{label} holds {name[:120]} in the type {encoding}, which is not read; read are "
            f"{', '.join(PLAIN + BLOCKS)}"
        )
    row_bytes = tensor.data.shape[-1]
    stored = StoredTensor(name, file, start, size, "U8", (*shape[:-1], int(row_bytes)))
    return GgufTensor(stored, shape, encoding)


def describe(error: Exception) -> str:
    """The package's words for what is wrong, on one line; some of its errors are values alone."""
    words = " ".join(str(error.args[0] if error.args else "").split())[:200]
    return words if " " in words else "its header cannot be read"
