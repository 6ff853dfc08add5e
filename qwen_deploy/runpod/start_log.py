"""What the system log of a worker says of its start: the image that is pulled, the container that starts, or fails to.

Reads lines; sends nothing. Knows nothing of how long anybody is willing to wait.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

CRASHES = 3  # starts of one container: the first, and two after it ended
STARTED = re.compile(r"\bstart(?:ed|ing)? container\b", re.I)
NO_IMAGE = re.compile(r"manifest (?:for .* )?(?:unknown|not found)|pull access denied|(?:error|failed)\b.*\bpull", re.I)
PULLING = re.compile(r"image pull|\bpulling\b|\bdownloading\b|\bextracting\b", re.I)
# A layer's line of docker's: `316f8cbc3be8 Downloading [=>    ]  37.63MB/5.689GB`, and when the layer is there.
LAYER = re.compile(
    r"\b([0-9a-f]{12}):? (Downloading|Extracting)\b.*?([\d.]+) ?([kKMGT]?)i?B ?/ ?([\d.]+) ?([kKMGT]?)i?B"
)
LAYER_DONE = re.compile(r"\b([0-9a-f]{12}):? (?:Download|Pull) complete")
SCALE = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def count_starts(lines: Sequence[str]) -> int:
    """How often the container was started. The platform starts it again when it ends."""
    return sum(1 for line in lines if STARTED.search(line))


def missing_image(lines: Sequence[str]) -> str | None:
    """The log's own words for an image that cannot be pulled, once two tries have failed: one is repeated anyway."""
    failed = [line for line in lines if NO_IMAGE.search(line)]
    return failed[-1].strip()[:300] if len(failed) > 1 else None


@dataclass
class Layer:
    """Bytes of a layer of the image: pulled, and in all."""

    done: float
    total: float


@dataclass
class Start:
    """How far one worker's start has come, by its log as `read` was given it."""

    layers: dict[str, Layer] = field(default_factory=dict[str, Layer])
    phase: str = "RunPod prepares its host"
    bytes_read_at: tuple[float, float] | None = None  # (bytes, seconds) at the look before
    rate: float | None = None  # bytes a second

    def read(self, lines: Sequence[str], now: float) -> None:
        """The whole log so far, at the time `now` in seconds."""
        for line in lines:
            self.read_layer(line)
            if STARTED.search(line):
                self.phase = "its container starts, and the worker in it"
            elif PULLING.search(line):
                self.phase = "the image is pulled"
        done = sum(layer.done for layer in self.layers.values())
        if self.bytes_read_at and now > self.bytes_read_at[1]:
            self.rate = (done - self.bytes_read_at[0]) / (now - self.bytes_read_at[1])
        self.bytes_read_at = (done, now)

    def read_layer(self, line: str) -> None:
        if match := LAYER.search(line):
            name, verb, done, unit, total, total_unit = match.groups()
            whole = float(total) * SCALE[total_unit]
            # What is extracted has been pulled already.
            self.layers[name] = Layer(float(done) * SCALE[unit] if verb == "Downloading" else whole, whole)
        elif (match := LAYER_DONE.search(line)) and (layer := self.layers.get(match.group(1))):
            layer.done = layer.total

    def describe(self) -> str:
        """The phase and, while the image is pulled, how much of it: for a line of progress."""
        total = sum(layer.total for layer in self.layers.values())
        if self.phase != "the image is pulled" or not total:
            return self.phase
        return f"{self.phase}: {describe_bytes(sum(layer.done for layer in self.layers.values()), total, self.rate)}"


def describe_bytes(done: float, total: float, rate: float | None) -> str:
    """`12.3 of 57.7 GB, 310 MB/s, about 146 s left`. `rate` in bytes a second, where it is known."""
    words = [f"{done / 1e9:.1f} of {total / 1e9:.1f} GB"]
    if rate and rate > 0:
        words += [f"{rate / 1e6:.0f} MB/s", f"about {(total - done) / rate:.0f} s left"]
    return ", ".join(words)
