"""What models take of a card: bytes of weights by layout, and the peak that a job of a given size will reach.

Pure arithmetic from parameter counts. Knows nothing of torch, files or machines. GB is 1e9 bytes, GiB 2^30.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import JobError
from ..model_settings import Precision, Saving

GB = 1e9
GIB = 2**30
MEGAPIXEL = 1 << 20
CONTEXT_BYTES = 1_000_000_000  # the CUDA context with cuBLAS and cuDNN
# That torch's allocator holds beside tensors and cannot give them: rests of pages, and pages of other streams. With
# less, it fetched and gave back pages hundreds of times a job in int8; in bfloat16 half of it would do.
UNALLOCATED_BYTES = 400_000_000
UNALLOCATED_NF4_BYTES = 200_000_000  # with which it gave nothing back on a card that both models in NF4 fill
STREAMED_BYTES = 300_000_000  # beside the embedding: the matrix in use and the next, 136 MB each in Qwen2.5-VL-7B
SCHEDULE_STEPS = 100  # the longest schedule whose modulation lies on the card
TIMESTEPS = 1248  # distinct timesteps in [1, 1000] that bfloat16 can tell apart, divided by 1000 in bfloat16

LORA_BYTES = 850_000_000  # set aside for each of the endpoint's own: rank 64 on all matrices of the 20B transformer
KEPT_LORA_BYTES = 4_000_000_000  # of host memory for jobs' LoRAs between jobs, where the plan leaves so much
TORCH_DTYPE = {Precision.FP32: "float32"}  # the others compute in bfloat16
# Bytes a parameter. NF4: 4 bits, a scale of 8 bits for 64 weights, and a scale of 32 bits for 256 of those (QLoRA,
# https://arxiv.org/abs/2305.14314, section 3). The row-wise scales of fp8 and int8 are below a thousandth.
BYTES = {Precision.BF16: 2.0, Precision.FP32: 4.0, Precision.FP8: 1.0, Precision.INT8: 1.0, Precision.NF4: 0.5176}
NOTHING_PACKED: Mapping[str, int] = {}
LOSSY = (Precision.FP8, Precision.INT8, Precision.NF4)
# GiB for each megapixel of picture and of references, where the blocks are not compiled: torchao quantizes activations
# through copies in float32, which compiled code never writes to memory. Fitted to torch's allocator at 1024 x 1024 with
# 0 to 3 references; the other precisions compute as `Working` says.
UNCOMPILED_DENOISE = {Precision.FP8: 0.89, Precision.INT8: 0.65}

# Where the text encoder's weights are: on the card in the plan's base precision, in pinned RAM and read from there
# matrix by matrix, or on the card in the plan's own precision.
TextEncoder = Literal["resident", "streamed", "quantized"]


@dataclass(frozen=True)
class Working:
    """Memory beside the weights, GiB for each megapixel; computed from the modules' shapes in bfloat16.

    `prefix`: that a pass of guidance keeps of each megapixel of references, from the first step to the last, where the
    transformer has a prefix cache. `follows_size`: whether references have the picture's own number of pixels, and not
    a megapixel. `encode_token`: bytes that the text encoder takes for each of its tokens.
    """

    denoise: float = 0.36
    denoise_edit: float = 0.38  # each megapixel of picture and of references
    decode: float = 3.38
    decode_frame: float = 1.32  # without the video's feature cache
    encode: float = 1.89
    encode_frame: float = 1.13
    tiled: float = 0.25  # GiB whatever the size
    prefix: float = 0.0
    follows_size: bool = False
    encode_token: int = 0
    lora_bytes: int = LORA_BYTES  # that each of the endpoint's own LoRAs may take

    def reference_pixels(self, pixels: float, most: float | None = None) -> float:
        """The megapixels of each reference beside a picture of so many; `most`: where a job caps them."""
        return min(max(pixels, LEAST_REFERENCE), most or MOST_REFERENCE) if self.follows_size else 1.0

    def tokens(self, references: float) -> float:
        """The tokens of the longest prompt with so many megapixels of references, of 32 x 32 pixels each."""
        return PROMPT_TOKENS + references * MEGAPIXEL / 32**2


LEAST_REFERENCE, MOST_REFERENCE = 512**2 / MEGAPIXEL, 2080**2 / MEGAPIXEL  # of `pictures/sizes.py`
PROMPT_TOKENS = 1100  # with the template's own
WORKING = Working()
# One of its blocks has 0.86 GiB at work for a megapixel that it draws and 0.60 for one of references, and the embedded
# pictures and prompt come to that. In a prefix cache a token of the transformer, of 16 x 16 pixels or of a text, has a
# key and a value of 4096 numbers in each of 32 blocks. The text encoder keeps the hidden states of all its 36 layers,
# and works with some more beside. The best few-step LoRA has rank 256.
WORKING_2_1 = Working(
    denoise=0.9, denoise_edit=0.77, decode=6.28, decode_frame=6.28, encode=2.09, encode_frame=2.09, tiled=0.45,
    prefix=2 * 4096 * 32 * 2 * 4096 / GIB, follows_size=True, encode_token=2 * 4096 * 37 + 100_000,
    lora_bytes=1_400_000_000,
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A checkpoint as the arithmetic sees it: counts of parameters, by component and by part of one.

    `shared`: components that an earlier model already brings. `packed`: bytes of what a checkpoint stores quantized, by
    component and part; of such a component the others count the rest.
    """

    name: str
    edits: bool
    parameters: Mapping[str, int] = field(hash=False)
    parts: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    shared: tuple[str, ...] = ()
    working: Working = WORKING
    packed: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    captions: bool = False  # its text encoder writes too

    @property
    def is_20b(self) -> bool:
        """Whether its architecture is the one that all savings and quantization know."""
        return "modulation" in self.parts

    def is_packed(self, component: str) -> bool:
        """Whether it is loaded as it is stored, already quantized: no plan changes its precision or its place."""
        return component in self.packed and component not in self.shared

    def parameters_of(self, component: str) -> int:
        return 0 if component in self.shared else self.parameters.get(component, 0)


@dataclass(frozen=True)
class Plan:
    """Where everything lives and in what precision, for all models of the worker."""

    device: str  # "cuda" or "cpu"
    precision: Precision
    models: tuple[Model, ...]
    savings: frozenset[Saving] = frozenset()
    table: bool = False  # modulation looked up instead of computed
    text_encoder: TextEncoder = "resident"
    swapped: bool = False  # one transformer at a time on the card
    limit_bytes: int = 0  # that may be used of the card; 0 on a CPU
    lora_bytes: int = 0  # that LoRAs take of the card while pictures are drawn, and of the host between jobs
    compiled: bool = True  # whether the transformers' blocks are
    spare_bytes: int = 0  # of host memory, which may be pinned beside what the plan pins
    streamed_loras: bool = False  # a job's LoRAs are read from host memory, block by block
    control_bytes: int = 0  # of the ControlNet that a job is drawn by, on the card
    residual_bytes: int = 0  # that it adds to the transformer, for each megapixel of the picture
    lora_rank: int = 0  # to which a job's LoRAs are padded for compiled blocks; 0 for LoRAs as they are
    passes: int = 1  # of guidance, of which each has a prefix cache of its own
    prefix_cache: bool = True  # where the transformer has one
    cards: int = 1  # on each of which a process has the transformers
    reference_pixels: float | None = None  # of a job that caps its references: megapixels of each
    draws_layers: bool | None = None  # of a job: whether a layered model draws it; None counts with every model

    @property
    def base_precision(self) -> Precision:
        """The precision of what is not quantized."""
        return Precision.FP32 if self.precision is Precision.FP32 else Precision.BF16

    @property
    def dtype(self) -> str:
        """The name of the torch dtype that the plan computes in."""
        return TORCH_DTYPE.get(self.precision, "bfloat16")

    @property
    def vision(self) -> bool:
        """Whether the text encoder keeps its vision tower."""
        return any(model.edits for model in self.models) or Saving.TRIM not in self.savings

    @property
    def language_head(self) -> bool:
        """Whether the text encoder keeps the layer that writes."""
        return any(model.captions for model in self.models) or Saving.TRIM not in self.savings

    @property
    def trimmed_parts(self) -> list[str]:
        """The parts of the text encoder that nothing of the plan's models uses."""
        return ["lm_head"] * (not self.language_head) + ["vision"] * (not self.vision)

    def transformer_bytes(self, model: Model) -> int:
        """The model's transformer on the card."""
        if model.is_packed("transformer"):
            plain_bytes = model.parameters_of("transformer") * BYTES[self.base_precision]
            return model.packed["transformer"] + round(plain_bytes)
        matrices = model.parts.get("matrices", 0) if self.precision in LOSSY else 0
        dropped = model.parts.get("modulation", 0) if self.table else 0
        unquantized = model.parameters_of("transformer") - matrices - dropped
        return round(matrices * BYTES[self.precision] + unquantized * BYTES[self.base_precision])

    def text_encoder_bytes(self, model: Model) -> int:
        """The model's text encoder, wherever it lives."""
        count, parts = model.parameters_of("text_encoder"), model.parts
        packed = model.packed if model.is_packed("text_encoder") else NOTHING_PACKED
        if not count and not packed:
            return 0
        packed_bytes = packed.get("text_encoder", 0)
        for part in self.trimmed_parts:
            count -= parts.get(part, 0)
            packed_bytes -= packed.get(part, 0)
        if packed:
            return packed_bytes + round(count * BYTES[self.base_precision])
        kept = ["embedding"] + ["vision"] * self.vision + ["lm_head"] * any(model.captions for model in self.models)
        never_quantized = sum(parts.get(part, 0) for part in kept)
        unquantized = never_quantized if self.text_encoder == "quantized" else count
        return round(unquantized * BYTES[self.base_precision] + (count - unquantized) * BYTES[self.precision])

    def vae_bytes(self, model: Model) -> int:
        count = model.parameters_of("vae")
        if count and Saving.CONV2D in self.savings:
            count -= model.parts.get("temporal", 0)
        return round(count * BYTES[self.base_precision])

    @property
    def weight_bytes(self) -> int:
        """All weights on the device between jobs."""
        transformers = [self.transformer_bytes(model) for model in self.models]
        text_encoders = 0 if self.text_encoder == "streamed" else sum(map(self.text_encoder_bytes, self.models))
        vaes = sum(map(self.vae_bytes, self.models))
        return (max if self.swapped else sum)(transformers) + text_encoders + vaes

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory; both cards' processes have the table's rows in common, and nothing else."""
        if self.device == "cpu":
            return 0
        tables = sum(model.parts.get("modulation_outputs", 0) for model in self.models) * 2 * TIMESTEPS
        return (
            (tables if self.table else 0)
            + (sum(map(self.text_encoder_bytes, self.models)) if self.text_encoder == "streamed" else 0)
            + (self.cards * sum(map(self.transformer_bytes, self.models)) if self.swapped else 0)
            + self.cards * self.lora_bytes
        )

    @property
    def kept_lora_bytes(self) -> int:
        """Host memory for one model's LoRAs: for the endpoint's own, and for what jobs bring, also between jobs."""
        return self.lora_bytes + min(KEPT_LORA_BYTES, self.spare_bytes) // len(self.models)

    def peak_bytes(self, width: int, height: int, images: int = 0, tiled: bool = False) -> int:
        """The most of the card that a job of this size will take; `images`: how many input pictures an edit has."""
        if self.device == "cpu":
            return self.weight_bytes
        pixels, frame = width * height / MEGAPIXEL, Saving.SINGLE_FRAME in self.savings
        most, text_bytes = 0.0, 0
        for model in self.models:
            if images and not model.edits or self.draws_layers not in (None, model.captions):
                continue
            need = model.working
            decode = need.tiled if tiled else (need.decode_frame if frame else need.decode) * pixels
            # Input pictures are brought to one size each; strength and masks encode one at the asked size too.
            each = need.reference_pixels(pixels, self.reference_pixels)
            encode = need.tiled if tiled else (need.encode_frame if frame else need.encode) * max(each, pixels)
            denoise = self.denoise_rate(need, images) * (pixels + images * each)
            if self.prefix_cache:
                denoise += self.passes * need.prefix * (images * each + PROMPT_TOKENS * 16**2 / MEGAPIXEL)
            denoise += self.residual_bytes * pixels / GIB
            text_bytes = max(text_bytes, round(need.encode_token * need.tokens(images * each)))
            most = max(most, denoise, decode, encode if images or self.control_bytes else 0.0)
        streamed = 0
        if self.text_encoder == "streamed":
            embedding = max(model.parts.get("embedding", 0) for model in self.models)
            # The language head is as large as the embedding, and is one matrix.
            head = max(model.parts.get("lm_head", 0) * model.captions for model in self.models)
            streamed = round((embedding + head) * BYTES[self.base_precision]) + STREAMED_BYTES
        streamed += text_bytes  # the text encoder's turn is over before the transformer's begins
        rows = max(model.parts.get("modulation_outputs", 0) for model in self.models) * 2 * SCHEDULE_STEPS
        working = (rows if self.table else 0) + self.lora_bytes + self.control_bytes + max(round(most * GIB), streamed)
        unallocated = UNALLOCATED_NF4_BYTES if self.precision is Precision.NF4 else UNALLOCATED_BYTES
        return CONTEXT_BYTES + unallocated + self.weight_bytes + working

    def denoise_rate(self, need: Working, images: int) -> float:
        """GiB beside the weights for each megapixel that the transformer sees, of the picture and of the input ones."""
        rate = need.denoise_edit if images else need.denoise
        return rate if self.compiled else UNCOMPILED_DENOISE.get(self.precision, rate)

    def with_loras(self, parameters: int, streamed: bool = False, rank: int = 0) -> "Plan":
        """The same layout for a job that brings LoRAs: without a `rank` it is drawn without compiled blocks.

        `parameters`: of the LoRAs on the card at a time, of `streamed` ones those of one block.
        """
        lora_bytes = self.lora_bytes + round(parameters * BYTES[self.base_precision])
        compiled = self.compiled and rank > 0
        return replace(self, lora_bytes=lora_bytes, compiled=compiled, streamed_loras=streamed, lora_rank=rank)

    def for_guidance(self, is_guided: bool, width: int, height: int, images: int) -> "Plan":
        """The same layout for a job of this size, with a prefix cache where there is room for it.

        Without one each step computes prompt and references anew.
        """
        if not any(model.working.prefix for model in self.models):
            return self
        plan = replace(self, passes=1 + is_guided)
        return plan if plan.fits(width, height, images) else replace(plan, prefix_cache=False)

    def with_control(self, control_bytes: int, residual_bytes: int) -> "Plan":
        """The same layout for a job that is drawn by a ControlNet, and whose control pictures are encoded."""
        return replace(self, control_bytes=control_bytes, residual_bytes=residual_bytes)

    def needs_tiles(self, width: int, height: int, images: int = 0) -> bool:
        """Whether the VAE has to work in tiles for this size to fit. Tiles cost time and may leave faint seams."""
        return self.device == "cuda" and self.peak_bytes(width, height, images) > self.limit_bytes

    def fits(self, width: int, height: int, images: int = 0) -> bool:
        """Whether a job of this size fits, if need be in tiles."""
        return self.device == "cpu" or self.peak_bytes(width, height, images, tiled=True) <= self.limit_bytes

    def pictures_per_call(self, width: int, height: int, most: int, pixels: int) -> int:
        """How many pictures of this size, of `pixels` in all, one call may draw without the VAE's tiles.

        Together they take what one picture of as many pixels takes.
        """
        counts = range(most, 1, -1)
        area = width * height
        return next((n for n in counts if n * area <= pixels and not self.needs_tiles(width, n * height)), 1)

    def largest_size(self, width: int, height: int, multiple: int, images: int = 0) -> tuple[int, int] | None:
        """The largest size of about this aspect that fits, in multiples; None where not even the smallest does."""
        for part in range(1, 64):
            scale = 1 - part / 64
            smaller_width, smaller_height = (
                max(multiple, int(side * scale) // multiple * multiple) for side in (width, height)
            )
            if self.fits(smaller_width, smaller_height, images):
                return smaller_width, smaller_height
        return None

    def require_fits(self, model: str, multiple: int, width: int, height: int, images: int) -> None:
        """Refuse a size that there is no room for, before anything is allocated, with the largest that there is.

        `model`: the checkpoint's name; `multiple`: of its sides. Raises `JobError` out_of_memory.
        """
        if self.fits(width, height, images):
            return
        largest = self.largest_size(width, height, multiple, images)
        advice = (
            f"the largest of this aspect is {largest[0]}x{largest[1]}" if largest else "no size of this aspect does"
        )
        needed_bytes = self.peak_bytes(width, height, images, tiled=True)
        raise JobError(
            "out_of_memory",
            f"{width}x{height} needs {needed_bytes / GB:.1f} GB with {model} and "
            f"{self.limit_bytes / GB:.1f} GB may be used; {advice}",
        )

    def __str__(self) -> str:
        where = f"{self.precision.value} on {self.device}, weights {self.weight_bytes / GB:.2f} GB"
        images = int(any(model.edits for model in self.models))
        packed = {name for model in self.models for name in ("transformer", "text_encoder") if model.is_packed(name)}
        where += "".join(f", {name.replace('_', ' ')} as it is stored" for name in sorted(packed))
        if self.device == "cpu":
            return where
        notes = ["modulation table"] * self.table + ["transformers swapped"] * self.swapped
        notes += [f"text encoder {self.text_encoder}"] * (self.text_encoder != "resident")
        peak_bytes = self.peak_bytes(1024, 1024, images, self.needs_tiles(1024, 1024, images))
        room = f"peak {peak_bytes / GB:.1f} of {self.limit_bytes / GB:.1f} GB, pinned {self.pinned_bytes / GB:.1f} GB"
        return ", ".join([where, *notes, room])
