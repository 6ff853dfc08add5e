"""A weight as it is encoded on the disk: where its bytes lie, and what turns them into numbers.

Of a checkpoint of diffusers every weight is one tensor of a safetensors file. In a single file a weight may have a
scale of its own, or be packed in blocks as GGUF does it. Knows nothing of torch, nor of files' headers.
"""

from dataclasses import dataclass, replace

from .files import StoredTensor


@dataclass(frozen=True)
class EncodedWeight:
    """`tensors`: the weight's own bytes and, where it has one, its scale: a number, or one for each row.

    `encoding`: safetensors' name of a dtype, or GGUF's of a type, as Q4_K.
    """

    name: str  # as the component's class calls it
    shape: tuple[int, ...]
    encoding: str
    tensors: tuple[StoredTensor, ...]

    @property
    def is_blocks(self) -> bool:
        """Whether its bytes are GGUF's blocks, of some numbers of a row with their scale each."""
        return self.tensors[0].dtype != self.encoding

    @property
    def has_scale(self) -> bool:
        return len(self.tensors) > 1

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are its numbers."""
        return not self.is_blocks and not self.has_scale

    def first_rows(self, count: int) -> "EncodedWeight":
        """The first rows of it alone."""
        rows = self.shape[0] if self.shape else 1
        count = min(count, rows)
        tensors = tuple(
            first_part(tensor, rows, count) if tensor.shape[:1] == (rows,) else tensor for tensor in self.tensors
        )
        return replace(self, shape=(count, *self.shape[1:]), tensors=tensors)


def first_part(tensor: StoredTensor, rows: int, count: int, start: int = 0) -> StoredTensor:
    """`count` of a tensor's rows, from row `start` on: rows follow one another on the disk."""
    row_bytes = tensor.size // rows
    begin, shape = tensor.start + start * row_bytes, (count, *tensor.shape[1:])
    return replace(tensor, start=begin, size=count * row_bytes, shape=shape, checksum=None)
