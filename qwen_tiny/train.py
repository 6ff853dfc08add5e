"""Makes the checkpoint from nothing: `python -m qwen_tiny.train`.

Ten stages, each seeded and resumable: VAE, text encoder, the generate transformer, the edit transformer and the
few-step LoRA (both start from the generate one), the generate transformer once more, with captions of which some are
wrong, a ControlNet for edges on it, and the layered pipeline's VAE, its transformer (both start from the edit
pipeline's) and its decoder alone. `--only` runs some of the stages on the checkpoint that is there. Uses a GPU when
there is one. Started again, it goes on where it was stopped. It leaves sheets of samples as it goes, the LoRA and the
ControlNet after their stages, and the folders at the end.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch

from . import CHECKPOINT, CONTROL, LORA, architecture
from .stages import control, few_step, layered, pools, sheets, text_encoder, transformer, vae
from .stages.pools import Size
from .training import auxiliary, fitting, forward

if TYPE_CHECKING:
    Pipelines = dict[str, diffusers.DiffusionPipeline]  # "generate" and "edit"

STEPS = {
    "vae": 8000, "text": 800, "generate": 18000, "edit": 10500, "few_step": 1500, "mistaken": 1200, "control": 7000,
    "layered_vae": 1000, "layered": 4000, "layered_decoder": 2500,
}  # fmt: skip
RATE = {
    "vae": 2e-3, "text": 1e-3, "generate": 1e-3, "edit": 1e-3, "few_step": 1e-3, "mistaken": 4e-5, "control": 1e-3,
    "layered_vae": 2e-3, "layered": 1e-3, "layered_decoder": 1e-3,
}  # fmt: skip
GENERATE_SIZES = (
    Size(256, 256, pictures=2000, wordings=4, tokens=64, share=2),
    Size(384, 256, pictures=600, wordings=8, tokens=96, share=1),
    Size(256, 384, pictures=600, wordings=8, tokens=96, share=1),
    Size(512, 512, pictures=500, wordings=8, tokens=128, share=3),
    Size(768, 512, pictures=300, wordings=12, tokens=160, share=2),
    Size(512, 768, pictures=300, wordings=12, tokens=160, share=1.5),
    Size(768, 768, pictures=200, wordings=12, tokens=160, share=1.5),
    Size(1024, 1024, pictures=300, wordings=12, tokens=192, share=5),
)
EDIT_SIZES = (
    Size(1024, 1024, pictures=200, wordings=16, tokens=192, share=7),
    Size(1248, 832, pictures=30, wordings=12, tokens=192, share=1),
    Size(832, 1248, pictures=30, wordings=12, tokens=192, share=1),
)
CONTROL_SIZES = (  # as many tokens of each: their blocks are compiled once
    Size(256, 256, pictures=900, wordings=3, tokens=64, share=6),
    Size(512, 512, pictures=120, wordings=6, tokens=64, share=1),
)
LAYERED_SIZES = (  # wordings do not count: captions are none of the picture's own
    Size(640, 640, pictures=200, wordings=0, tokens=64, share=6),
    Size(768, 512, pictures=24, wordings=0, tokens=64, share=1),
    Size(512, 768, pictures=24, wordings=0, tokens=64, share=1),
)
MISTAKES = 0.35  # share of the last stage's captions that describe another picture
KEPT_CHANGE = 0.7  # share of the last stage's change to the weights: with all of it the LoRA draws half as well


def main() -> None:
    arguments = parse_arguments()
    diffusers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = STEPS | {name: getattr(arguments, name) for name in STEPS if getattr(arguments, name) is not None}
    pipelines = load_pipelines(arguments.out) if arguments.only else architecture.build_pipelines(arguments.seed)
    for pipeline in pipelines.values():
        pipeline.to(device)
    stages = {
        "vae": train_vae, "text": train_text, "generate": train_generate, "edit": train_edit,
        "few_step": train_few_step, "mistaken": train_mistaken, "control": train_control,
        "layered_vae": train_layered_vae, "layered": train_layered, "layered_decoder": train_layered_decoder,
    }  # fmt: skip
    done = []
    for name, stage in stages.items():
        if arguments.only and name not in arguments.only:
            continue
        stage(pipelines, steps, arguments)
        round_as_saved(pipelines)
        done.append(name)
        if name == arguments.until:
            break
    trained = {name: pipeline for name, pipeline in pipelines.items() if name in done}
    if "layered_decoder" in done:
        trained["layered"] = pipelines["layered"]
    architecture.save(trained, arguments.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="where the results go (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("out/tiny-qwen-image"), help="checkpoints and sample sheets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", choices=STEPS, help="stop after this stage")
    parser.add_argument("--only", nargs="+", choices=STEPS, help="these stages, from the checkpoint that is in --out")
    for name, default in STEPS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="STEPS", help=f"default {default}")
    return parser.parse_args()


def load_pipelines(folder: Path) -> "Pipelines":
    """The pipelines of a checkpoint that earlier stages have made, in float32."""
    names = [name for name in ("generate", "edit", "layered") if (folder / name).exists()]
    return {name: diffusers.DiffusionPipeline.from_pretrained(folder / name, dtype=torch.float32) for name in names}


def round_as_saved(pipelines: "Pipelines") -> None:
    """Give the weights the values that `architecture.save` writes: training goes on from what will be loaded."""
    for pipeline in pipelines.values():
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
            for parameter in part.parameters():
                parameter.data.copy_(parameter.bfloat16())


def train_vae(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    model = pipelines["generate"].vae
    vae.initialise(model)
    compiled_loss = forward.compiled(vae.loss)

    def loss(step: int) -> tuple[torch.Tensor, float]:
        pixels = vae.draw_batch(step, steps["vae"], arguments.seed).to(model.device)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn((len(pixels), 16, *(side // 16 for side in pixels.shape[2:])), generator=generator)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        value, error = compiled_loss(model, pixels, noise.to(model.device))
        return value, error.item()

    fitting.fit(
        "vae", {"vae": model}, loss, steps["vae"], arguments.work, RATE["vae"], vae.trained_parameters(model),
        show=lambda step: sheets.write_reconstructions(model, arguments.work / "vae.png"),
    )  # fmt: skip
    vae.measure_latents(model, arguments.seed)


def train_text(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    pipeline = pipelines["edit"]
    torch.manual_seed(arguments.seed)
    reader = text_encoder.Reader(pipeline.text_encoder).to(pipeline.text_encoder.device)

    def loss(step: int) -> tuple[torch.Tensor, float]:
        return text_encoder.loss(reader, pipeline.tokenizer, pipeline.processor, f"{arguments.seed} {step}")

    fitting.fit("text", {"reader": reader}, loss, steps["text"], arguments.work, RATE["text"])
    pipeline.text_encoder.requires_grad_(False)


def train_generate(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    transformer.initialise(pipelines["generate"].transformer)
    _fit_transformer("generate", pipelines, pools.make_generate_pool, GENERATE_SIZES, steps, arguments)


def train_edit(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    pipelines["edit"].transformer.load_state_dict(pipelines["generate"].transformer.state_dict())
    _fit_transformer("edit", pipelines, pools.make_edit_pool, EDIT_SIZES, steps, arguments)


def train_few_step(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    model = pipelines["generate"].transformer
    paths: list[few_step.TeacherPaths] = []
    if not fitting.is_finished(arguments.work / "few_step.pt", steps["few_step"]):
        paths = few_step.walk_paths(model, _embedder(pipelines), GENERATE_SIZES, arguments.seed)
    torch.manual_seed(arguments.seed)
    parameters = few_step.add_adapter(model)

    def loss(step: int) -> tuple[torch.Tensor, float]:
        return few_step.loss(model, paths, step, arguments.seed)

    fitting.fit(
        "few_step", {"transformer": model}, loss, steps["few_step"], arguments.work, RATE["few_step"], parameters
    )
    few_step.save(model, arguments.out / LORA)
    model.unload_lora()
    model.requires_grad_(True)


def train_mistaken(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    """Last, because the edits and the LoRA are better for having started from weights without wrong captions."""
    model = pipelines["generate"].transformer
    before = [parameter.detach().clone() for parameter in model.parameters()]
    checkpoint = torch.load(arguments.work / "generate.pt", weights_only=True, map_location="cpu")
    make_pool = functools.partial(pools.make_generate_pool, mistakes=MISTAKES)
    heads_state = checkpoint["modules"]["heads"]
    _fit_transformer("mistaken", pipelines, make_pool, GENERATE_SIZES, steps, arguments, heads_state)
    with torch.no_grad():
        for parameter, start in zip(model.parameters(), before, strict=True):
            parameter.copy_(torch.lerp(start, parameter, KEPT_CHANGE))


def train_control(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    pipeline = pipelines["generate"]
    model = pipeline.transformer.requires_grad_(False)
    torch.manual_seed(arguments.seed)
    start = arguments.out / CONTROL if arguments.only else None
    controlnet = control.build(model, start).requires_grad_(True)
    heads = auxiliary.Heads(model.inner_dim).to(model.device)
    stocks: list[control.Pool] = []
    if not fitting.is_finished(arguments.work / "control.pt", steps["control"]):
        embedder, folder, seed = _embedder(pipelines), arguments.work / "pools", arguments.seed
        stocks = [control.make_pool(pipeline.vae, embedder, size, seed, folder) for size in CONTROL_SIZES]

    def loss(step: int) -> tuple[torch.Tensor, float]:
        return control.step_loss(model, controlnet, heads, stocks, step, arguments.seed)

    fitting.fit(
        "control", {"controlnet": controlnet, "heads": heads}, loss, steps["control"], arguments.work, RATE["control"],
        matrices=transformer.block_matrices(controlnet),
        show=lambda step: sheets.write_controlled(pipeline, controlnet, arguments.work / f"control-{step:06d}.png"),
    )  # fmt: skip
    controlnet.to(torch.bfloat16).save_pretrained(arguments.out / CONTROL)
    architecture.remove_origins(arguments.out / CONTROL)


def train_layered_vae(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    pipelines["layered"] = architecture.build_layered(pipelines["edit"])
    model = pipelines["layered"].vae.to(pipelines["edit"].device)

    def loss(step: int) -> tuple[torch.Tensor, float]:
        pixels = layered.draw_batch(step, arguments.seed).to(model.device)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn((len(pixels), 16, *(side // 16 for side in pixels.shape[2:])), generator=generator)
        behind = 2 * torch.rand((len(pixels), 3, 1, 1), generator=generator) - 1
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        value, error = layered.vae_loss(model, pixels, noise.to(model.device), behind.to(model.device))
        return value, error.item()

    fitting.fit(
        "layered_vae", {"vae": model}, loss, steps["layered_vae"], arguments.work, RATE["layered_vae"],
        vae.trained_parameters(model), warmup=20,
    )  # fmt: skip
    layered.measure_latents(model, arguments.seed)


def train_layered(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    pipeline = pipelines["layered"]
    model = pipeline.transformer.to(pipelines["edit"].device)
    torch.manual_seed(arguments.seed)
    heads = auxiliary.Heads(model.inner_dim, frames=layered.FRAMES).to(model.device)
    sampler = None
    if not fitting.is_finished(arguments.work / "layered.pt", steps["layered"]):
        sampler = layered.BatchSampler(model, pipeline.vae, _embedder(pipelines), LAYERED_SIZES, arguments.seed)

    def loss(step: int) -> tuple[torch.Tensor, float]:
        return sampler.loss(heads, step, arguments.seed)

    fitting.fit(
        "layered", {"layered": model, "heads": heads}, loss, steps["layered"], arguments.work, RATE["layered"],
        matrices=transformer.block_matrices(model),
    )  # fmt: skip


def train_layered_decoder(pipelines: "Pipelines", steps: dict[str, int], arguments: argparse.Namespace) -> None:
    """Last: a decoder that draws better changes none of the latents that the transformer has learnt."""
    model = pipelines["layered"].vae.to(pipelines["edit"].device)
    of_decoder = {id(parameter) for parameter in model.decoder.parameters()}
    parameters = [parameter for parameter in vae.trained_parameters(model) if id(parameter) in of_decoder]

    def loss(step: int) -> tuple[torch.Tensor, float]:
        pixels = layered.draw_batch(step, f"{arguments.seed} decoder", every=4)
        behind = 2 * torch.rand((len(pixels), 3, 1, 1), generator=torch.Generator().manual_seed(step)) - 1
        pixels = pixels.to(model.device).contiguous(memory_format=torch.channels_last)
        value, error = layered.decoder_loss(model, pixels, behind.to(model.device))
        return value, error.item()

    fitting.fit(
        "layered_decoder", {"vae": model}, loss, steps["layered_decoder"], arguments.work, RATE["layered_decoder"],
        parameters, warmup=20,
    )  # fmt: skip


def _fit_transformer(
    name: str,
    pipelines: "Pipelines",
    make_pool: Callable[..., pools.Pool],
    sizes: Sequence[Size],
    steps: dict[str, int],
    arguments: argparse.Namespace,
    heads_state: dict[str, torch.Tensor] | None = None,
) -> None:
    """`heads_state`: the auxiliary heads to go on from; without it they start anew."""
    pipeline = pipelines["edit" if name == "edit" else "generate"]
    model, sampler = pipeline.transformer, None
    if not fitting.is_finished(arguments.work / f"{name}.pt", steps[name]):  # its pools take minutes to encode
        embedder, folder = _embedder(pipelines), arguments.work / "pools"
        stocks = [make_pool(pipeline.vae, embedder, size, arguments.seed, folder) for size in sizes]
        sampler = transformer.BatchSampler(model, stocks, sizes)
    heads = auxiliary.Heads(model.inner_dim).to(model.device)
    if heads_state:
        heads.load_state_dict(heads_state)

    def loss(step: int) -> tuple[torch.Tensor, float]:
        return transformer.step_loss(sampler, heads, step, arguments.seed)

    fitting.fit(
        name, {name: model, "heads": heads}, loss, steps[name], arguments.work, RATE[name],
        matrices=transformer.block_matrices(model),
        show=lambda step: sheets.write_samples(pipeline, arguments.work / f"{name}-{step:06d}.png"),
    )  # fmt: skip


def _embedder(pipelines: "Pipelines") -> text_encoder.Embedder:
    return text_encoder.Embedder(pipelines["edit"].text_encoder, pipelines["edit"].processor)


if __name__ == "__main__":
    main()
