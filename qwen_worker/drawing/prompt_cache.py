"""The text encoder's output for prompts (and the pictures that go with them) encoded before, kept in RAM up to a bound.

Exact: what is returned equals what the encoder would compute. An encoding that cannot be copied to RAM is not kept.
Knows nothing of jobs.
"""

import hashlib
import inspect
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from ..memory.failures import Failure, attempt
from ..model.overrides import overridden


class NoDigest(Exception):
    """An argument has no digest: the call is not cached."""


class PromptCache:
    """`max_bytes` of tensors; 0 keeps none. For the one inference thread."""

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self.hits = self.misses = 0
        self.entries: OrderedDict[tuple[Any, ...], tuple[Any, ...]] = OrderedDict()
        # The keys hold a pipeline's number, not its address: a later pipeline may lie at the same address.
        self.numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.counter = itertools.count()

    @contextmanager
    def caching(self, pipe: Any, after: Callable[[], None]) -> Generator[None]:
        """Within, the pipeline's `encode_prompt` asks the cache first and calls `after` at its end, which may raise."""
        encode = pipe.encode_prompt
        signature = inspect.signature(encode)

        def cached(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            encoded = self.encode(pipe, encode, signature.bind(*args, **kwargs))
            after()
            return encoded

        with overridden(pipe, "encode_prompt", cached):
            yield

    def encode(
        self, pipe: Any, encode: Callable[..., tuple[Any, ...]], call: inspect.BoundArguments
    ) -> tuple[Any, ...]:
        """What `encode` returns for the call, from an equal call before where there was one."""
        number = self.numbers.get(pipe)
        if number is None:
            number = self.numbers[pipe] = next(self.counter)
        try:
            key = (number, *((name, digest(value)) for name, value in call.arguments.items()))
        except NoDigest:
            return encode(*call.args, **call.kwargs)
        if key in self.entries:
            self.hits += 1
            self.entries.move_to_end(key)
            return tuple(from_ram(part) for part in self.entries[key])
        self.misses += 1
        encoded = encode(*call.args, **call.kwargs)
        copied = attempt(lambda: tuple(to_ram(part) for part in encoded))
        if not isinstance(copied, Failure):
            self.keep(key, copied)
        return encoded

    def keep(self, key: tuple[Any, ...], parts: tuple[Any, ...]) -> None:
        """Keep an encoding, and drop the least recently used beyond the bound."""
        size = sum(map(size_of, parts))
        if size > self.max_bytes:
            return
        self.entries[key] = parts
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, oldest = self.entries.popitem(last=False)
            self.bytes -= sum(map(size_of, oldest))


def digest(value: Any) -> Any:
    """Equal for equal values only, up to SHA-256. Raises `NoDigest`."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(digest, value))
    if isinstance(value, Image.Image):
        return value.mode, value.size, hashlib.sha256(value.tobytes()).digest()
    import torch

    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        return str(value.dtype), str(value.device), tuple(value.shape), hashlib.sha256(data.data).digest()
    raise NoDigest


def to_ram(part: Any) -> Any:
    """A tensor as (its device, a copy in RAM); anything else as it is."""
    if not hasattr(part, "detach"):
        return part
    return part.device, part.detach().to("cpu", copy=True)


def from_ram(part: Any) -> Any:
    """The inverse of `to_ram`: a tensor as a copy on its device."""
    if not isinstance(part, tuple):
        return part
    device, tensor = part
    return tensor.to(device, copy=True)


def size_of(part: Any) -> int:
    """The bytes of what `to_ram` returned; 0 for what is no tensor."""
    return part[1].nbytes if isinstance(part, tuple) else 0
