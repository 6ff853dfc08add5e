"""Host memory that a card fetches weights from: pinned, or pageable where the system refuses to pin.

A copy from pageable memory is as right, and slower: torch copies it through a pinned buffer of its own and waits. A
system may limit pinned memory below its RAM (a virtual machine, WSL), which only the attempt shows. Torch reports that
as an `AcceleratorError`, although CUDA goes on working.

Imports torch: import it inside functions. Knows nothing of whose weights they are.
"""

from collections.abc import Sequence

import torch

from ..errors import describe_error, is_out_of_memory
from ..log import log_line


class Pinning:
    """Pins until the system refuses, and then no more until `resume`. For any thread.

    `refusal`: the system's words, empty while it has not refused.
    """

    def __init__(self) -> None:
        self.refusal = ""

    def resume(self) -> None:
        """Try to pin again, as for another model once an earlier one has gone."""
        self.refusal = ""

    def empty(self, shape: Sequence[int], dtype: torch.dtype, wanted: bool = True) -> torch.Tensor:
        """An uninitialized tensor in host memory, pinned if that is `wanted` and can be had."""
        if wanted and not self.refusal:
            try:
                return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
            except RuntimeError as error:
                self.record(error)
        return torch.empty(tuple(shape), dtype=dtype)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """A pinned copy, or the tensor itself if it is pinned; where that cannot be had, the tensor in host memory."""
        if tensor.is_pinned():
            return tensor
        host = tensor.cpu()
        if not self.refusal:
            try:
                return host.pin_memory()
            except RuntimeError as error:
                self.record(error)
        return host

    def record(self, error: RuntimeError) -> None:
        """Remember a refusal. Raises the error again if it is another one."""
        if not is_out_of_memory(error):
            raise error
        self.refusal = describe_error(error)
        log_line(
            None, "WARN", f"host memory is not pinned from now on, so that copies to the card wait: {self.refusal}"
        )


pinning = Pinning()  # one, because the limit is the process's
