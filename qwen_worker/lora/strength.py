"""How strongly a LoRA's matrices are meant to act: alpha / rank, wherever its trainer wrote the alpha. Pure.

Most trainers write it into the file as a tensor of each layer. Others leave it in peft's configuration, which diffusers
puts into the file's metadata and peft into `adapter_config.json` beside the file, or in plain metadata. Where nothing
is said, the matrices act as they are. Knows nothing of files.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from .names import Kind, UnusableLora, layer_name, printable

ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration
CONFIG_NAME = "adapter_config.json"  # where peft keeps it
PLAIN_ALPHAS = ("lora_alpha", "network_alpha", "ss_network_alpha")
PLAIN_RANKS = ("rank", "r", "lora_rank", "network_dim", "ss_network_dim")
KOHYA_MODULE = "ss_network_module"
MOST_PATTERNS = 10_000  # ten times the layers of the 20B transformer
MOST_SCALING = 10_000  # beyond this an alpha is a slip or worse, and bfloat16 ends
# Of peft's patterns for layers' names, what is no regular expression: a name, or an end of one.
PLAIN_PATTERN = re.compile(r"(?P<start>\^)?(\.\*\\?\.?)?(?P<name>(\w|\\?\.)+)\$?")


@dataclass(frozen=True)
class Pattern:
    """Numbers of layers, by their names or ends of these; peft takes the first that matches."""

    numbers: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])  # with its place
    whole: frozenset[str] = frozenset()  # those that are whole names only

    def number_of(self, layer: str) -> float | None:
        ends = (layer[start:] for start in range(len(layer)) if start == 0 or layer[start - 1] == ".")
        found = [self.numbers[end] for end in ends if end in self.numbers and (end == layer or end not in self.whole)]
        return min(found)[1] if found else None


@dataclass(frozen=True)
class Alphas:
    """What is said of the alphas of layers that have none of their own.

    `source`: where it is said, as errors name it. `rank`, `ranks`: of the matrices, where peft says it.
    """

    source: str = ""
    alpha: float | None = None
    rank: float | None = None
    alphas: Pattern = Pattern()
    ranks: Pattern = Pattern()
    uses_root: bool = False  # peft's rslora: scaling is alpha / sqrt(rank) in place of alpha / rank
    is_peft: bool = False  # whose ranks the tensors must have: peft itself loads no others

    def scaling_of(self, layer: str, kind: Kind, rank: int) -> float:
        """Of a layer without an alpha of its own. `rank`: of its matrices, 0 for a LoKr of whole ones.

        Raises `UnusableLora` where what is said is no number, or is of other matrices.
        """
        said_rank = self.ranks.number_of(layer) or self.rank
        if self.is_peft and said_rank and rank and said_rank != rank:
            words = f"says a rank of {said_rank:g} for {printable(layer)} in {self.source}"
            raise UnusableLora(f"{words}, and its matrices have {rank}")
        alpha = self.alphas.number_of(layer)
        alpha = self.alpha if alpha is None else alpha
        # LyCORIS does not scale whole matrices; peft does, by the rank that its configuration says.
        rank = rank or (int(said_rank or 0) if self.is_peft and kind is Kind.LOKR else 0)
        if alpha is None or not rank:
            return 1.0
        where = f"for {printable(layer)} in {self.source}"
        return require_scaling(alpha, math.sqrt(rank) if self.uses_root else rank, where)


def require_scaling(alpha: float, divisor: float, where: str) -> float:
    """alpha / divisor. Raises `UnusableLora` for an alpha with which no picture can be meant; `where`: of the alpha."""
    if not math.isfinite(alpha) or not alpha or abs(alpha / divisor) > MOST_SCALING:
        rule = f"an alpha is a number other than 0, and at most {MOST_SCALING:,} times the rank"
        raise UnusableLora(f"has an alpha of {alpha:g} {where}; {rule}")
    return alpha / divisor


def read_alphas(
    metadata: Any, config: bytes | None, tensors: Iterable[str], ranks: Collection[int]
) -> tuple[Alphas, str]:
    """What the file's metadata say, else the configuration beside it, and a warning if something could not be used.

    `tensors`: the names of the file's; `ranks`: of its matrices. Raises `UnusableLora` for what cannot be read, or a
    DoRA.
    """
    facts: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    if ADAPTER_METADATA in facts:
        return peft_alphas(facts[ADAPTER_METADATA], ADAPTER_METADATA), ""
    if config is not None:
        return peft_alphas(config, CONFIG_NAME), ""
    # musubi-tuner converts its files to peft's names: alphas are then in the matrices, and metadata still name them.
    is_converted = KOHYA_MODULE in facts and any(".lora_A." in name for name in tensors)
    names = [name for name in PLAIN_ALPHAS if name in facts and not (is_converted and name.startswith("ss_"))]
    for name in names:
        if (alpha := plain_number(facts[name])) is not None:
            rank = next((rank for key in PLAIN_RANKS if (rank := plain_number(facts.get(key)))), None)
            if rank and rank not in ranks:
                words = f"has {name} {alpha:g} for a rank of {rank:g} in its metadata, and no matrices of that rank"
                return Alphas(), f"{words}: it was not used"
            return Alphas(f"{name} of its metadata", alpha), ""
    if names:
        value = printable(str(facts[names[0]]))
        return Alphas(), f"has {names[0]} {value!r} in its metadata, which is no number and was not used"
    return Alphas(), ""


def plain_number(value: Any) -> float | None:
    """A number in a file's metadata, which are text; None for any other text, as "Dynamic" of kohya's resized LoRAs."""
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None


def peft_alphas(text: Any, source: str) -> Alphas:
    """What peft's configuration says. Raises `UnusableLora` for one that cannot be read, or is a DoRA's."""
    try:
        loaded = json.loads(text)
        facts = {name.removeprefix("transformer."): value for name, value in loaded.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UnusableLora(f"has {source} that cannot be read: it must be a JSON object") from None
    if facts.get("use_dora"):
        raise UnusableLora(f"is a DoRA by {source}, which cannot be applied")
    name = "lora_alpha" if "lora_alpha" in facts else "alpha"  # LoRA's, and LoKr's and LoHa's
    return Alphas(
        source,
        config_number(facts, name, source),
        config_number(facts, "r", source),
        config_pattern(facts, "alpha_pattern", source),
        config_pattern(facts, "rank_pattern", source),
        facts.get("use_rslora") is True,
        is_peft=True,
    )


def config_number(facts: Mapping[str, Any], name: str, source: str) -> float | None:
    value = facts.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnusableLora(f"has {source} that cannot be read: {printable(name)} must be a number")
    try:
        return float(value)
    except OverflowError:
        raise UnusableLora(f"has {source} that cannot be read: {printable(name)} is too large a number") from None


def config_pattern(facts: Mapping[str, Any], field_name: str, source: str) -> Pattern:
    pattern = facts.get(field_name)
    if not isinstance(pattern, dict | None):
        raise UnusableLora(f"has {source} that cannot be read: {field_name} must be numbers by layer")
    if pattern and len(pattern) > MOST_PATTERNS:
        words = f"has {source} with {len(pattern):,} layers in {field_name}"
        raise UnusableLora(f"{words}; at most {MOST_PATTERNS:,} are read")
    numbers: dict[str, tuple[int, float]] = {}
    whole: set[str] = set()
    for place, key in enumerate(cast("dict[str, Any]", pattern or {})):
        number = config_number(cast("dict[str, Any]", pattern), key, f"{source}, {field_name}")
        match = PLAIN_PATTERN.fullmatch(key)
        if match is None:
            words = f"has {source} that cannot be read: {field_name} names {printable(key)}"
            raise UnusableLora(f"{words}, which is no name of a layer, nor an end of one")
        name = layer_name(match["name"].replace("\\.", "."))
        if number is not None and name not in numbers:
            numbers[name] = place, number
            if match["start"]:
                whole.add(name)
    return Pattern(numbers, frozenset(whole))
