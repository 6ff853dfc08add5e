"""Makes the checkpoint from nothing: `python -m qwen_tiny.train`.

Six stages, each seeded and resumable: VAE, text encoder, the generate transformer, the edit transformer and the
few-step LoRA (both start from the generate one), and the generate transformer once more, with captions of which some
are wrong. Uses a GPU when there is one. Started again, it goes on where it was stopped. It leaves sheets of samples as
it goes, the LoRA after its stage, and the two folders at the end.
"""

import argparse
import functools
from pathlib import Path

import diffusers
import torch

from . import CHECKPOINT, architecture
from .stages import few_step, pools, sheets, vae
from .stages import text_encoder as text
from .stages import transformer as flow
from .training import auxiliary as hints
from .training import fitting, forward
from .world import tasks as dataset

STEPS = {"vae": 8000, "text": 800, "generate": 18000, "edit": 10500, "few_step": 1500, "mistaken": 1200}
RATE = {"vae": 2e-3, "text": 1e-3, "generate": 1e-3, "edit": 1e-3, "few_step": 1e-3, "mistaken": 4e-5}
WAY = 0.7  # share of the last stage's change to the weights that is kept: with all of it the LoRA draws half as well


def main():
    arguments = parse()
    diffusers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = STEPS | {name: getattr(arguments, name) for name in STEPS if getattr(arguments, name) is not None}
    built = architecture.pipelines(arguments.seed)
    for pipeline in built.values():
        pipeline.to(device)
    stages = {
        "vae": train_vae, "text": train_text, "generate": train_generate, "edit": train_edit,
        "few_step": train_few_step, "mistaken": train_mistaken,
    }  # fmt: skip
    done = []
    for name, stage in stages.items():
        stage(built, steps, arguments)
        round_as_saved(built)
        done.append(name)
        if name == arguments.until:
            break
    architecture.save({name: pipeline for name, pipeline in built.items() if name in done}, arguments.out)


def round_as_saved(built):
    """Give the weights the values that `architecture.save` writes: training goes on from what will be loaded."""
    for pipeline in built.values():
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
            for parameter in part.parameters():
                parameter.data.copy_(parameter.bfloat16())


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="where the results go (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("out/tiny-qwen-image"), help="checkpoints and sample sheets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", choices=STEPS, help="stop after this stage")
    for name, default in STEPS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="STEPS", help=f"default {default}")
    return parser.parse_args()


def train_vae(built, steps, arguments):
    autoencoder = built["generate"].vae
    device = autoencoder.device
    vae.initialise(autoencoder)

    measured = forward.faster(vae.loss)

    def loss(step):
        pixels = vae.pictures(step, steps["vae"], arguments.seed).to(device)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn((len(pixels), 16, *(side // 16 for side in pixels.shape[2:])), generator=generator)
        value, error = measured(autoencoder, pixels.contiguous(memory_format=torch.channels_last), noise.to(device))
        return value, error.item()

    fitting.fit(
        "vae", {"vae": autoencoder}, loss, steps["vae"], arguments.work, RATE["vae"], vae.parameters(autoencoder),
        show=lambda step: sheets.reconstructions(autoencoder, arguments.work / "vae.png"),
    )  # fmt: skip
    vae.measure_on_scenes(autoencoder, arguments.seed)


def train_text(built, steps, arguments):
    pipeline = built["edit"]
    torch.manual_seed(arguments.seed)
    reader = text.Reader(pipeline.text_encoder).to(pipeline.text_encoder.device)

    def loss(step):
        return text.loss(reader, pipeline.tokenizer, pipeline.processor, f"{arguments.seed} {step}")

    fitting.fit("text", {"reader": reader}, loss, steps["text"], arguments.work, RATE["text"])
    pipeline.text_encoder.requires_grad_(False)


def train_generate(built, steps, arguments):
    torch.manual_seed(arguments.seed)
    flow.initialise(built["generate"].transformer)
    _fit_transformer("generate", built, pools.generate, flow.GENERATE_SIZES, steps, arguments)


def train_edit(built, steps, arguments):
    built["edit"].transformer.load_state_dict(built["generate"].transformer.state_dict())
    _fit_transformer("edit", built, pools.edit, flow.EDIT_SIZES, steps, arguments)


def train_few_step(built, steps, arguments):
    transformer, path = built["generate"].transformer, arguments.work / "few_step.pt"
    walked = []
    if not fitting.finished(path, steps["few_step"]):
        walked = few_step.paths(transformer, _reader(built), arguments.seed)
    torch.manual_seed(arguments.seed)
    parameters = few_step.add_adapter(transformer)

    def loss(step):
        return few_step.loss(transformer, walked, step, arguments.seed)

    fitting.fit(
        "few_step", {"transformer": transformer}, loss, steps["few_step"], arguments.work, RATE["few_step"], parameters
    )
    few_step.save(transformer, arguments.out / "few-step" / "tiny-qwen-image-4steps.safetensors")
    transformer.unload_lora()
    transformer.requires_grad_(True)


def train_mistaken(built, steps, arguments):
    """Last, because the edits and the LoRA are better for having started from what met no mistakes."""
    transformer = built["generate"].transformer
    before = [parameter.detach().clone() for parameter in transformer.parameters()]
    heads = torch.load(arguments.work / "generate.pt", weights_only=True, map_location="cpu")["modules"]["heads"]
    _fit_transformer(
        "mistaken", built, functools.partial(pools.generate, mistakes=dataset.MISTAKEN), flow.GENERATE_SIZES,
        steps, arguments, heads,
    )  # fmt: skip
    with torch.no_grad():
        for parameter, start in zip(transformer.parameters(), before, strict=True):
            parameter.copy_(torch.lerp(start, parameter, WAY))


def _fit_transformer(name, built, pool, sizes, steps, arguments, known=None):
    """`known`: the state of the hints' heads to go on from."""
    pipeline = built["edit" if name == "edit" else "generate"]
    transformer, task = pipeline.transformer, None
    if not fitting.finished(arguments.work / f"{name}.pt", steps[name]):  # its pools take minutes to encode
        reader = _reader(built)
        task = flow.Task(
            transformer,
            [pool(pipeline.vae, reader, size, arguments.seed, arguments.work / "pools") for size in sizes],
            sizes,
        )
    heads = hints.Heads(transformer.inner_dim).to(transformer.device)
    if known:
        heads.load_state_dict(known)

    def loss(step):
        return flow.step_loss(task, heads, step, arguments.seed)

    fitting.fit(
        name, {name: transformer, "heads": heads}, loss, steps[name], arguments.work, RATE[name],
        matrices=flow.matrices(transformer),
        show=lambda step: sheets.samples(pipeline, arguments.work / f"{name}-{step:06d}.png"),
    )  # fmt: skip


def _reader(built):
    return text.Embedder(built["edit"].text_encoder, built["edit"].processor)


if __name__ == "__main__":
    main()
