"""Makes the checkpoint from nothing: `python -m models.tiny-qwen-image.train`.

Five stages, each seeded and resumable: VAE, text encoder, the generate transformer, the edit transformer (which
starts from the generate one), the few-step LoRA. Uses a GPU when there is one. Started again, it goes on where it
was stopped. Beside the checkpoints it leaves sheets of samples as it goes.
"""

import argparse
from pathlib import Path

import diffusers
import torch

from . import architecture, few_step, fitting, flow, sheets, text, vae

STEPS = {"vae": 2500, "text": 800, "generate": 12500, "edit": 10000, "few_step": 1200}
RATE = {"vae": 2e-3, "text": 1e-3, "generate": 1e-3, "edit": 1e-3, "few_step": 1e-3}
HERE = Path(__file__).parent


def main():
    arguments = parse()
    diffusers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = STEPS | {name: getattr(arguments, name) for name in STEPS if getattr(arguments, name) is not None}
    built = architecture.pipelines(arguments.seed)
    for pipeline in built.values():
        pipeline.to(device)
    for stage in (train_vae, train_text, train_generate, train_edit, train_few_step):
        stage(built, steps, arguments.work, arguments.seed)
        architecture.save(built, arguments.out)
        for pipeline in built.values():
            pipeline.to(dtype=torch.float32)  # saving rounds to bfloat16: go on from exactly what was saved
        if stage.__name__ == f"train_{arguments.until}":
            break


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="where generate/ and edit/ go (default: this folder)")
    parser.add_argument("--work", type=Path, default=Path("out/tiny-qwen-image"), help="checkpoints and sample sheets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", choices=STEPS, help="stop after this stage")
    for name, default in STEPS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="STEPS", help=f"default {default}")
    return parser.parse_args()


def train_vae(built, steps, work, seed):
    autoencoder = built["generate"].vae
    device = autoencoder.device
    vae.initialise(autoencoder)

    def loss(step):
        wide = step % 8 == 7  # now and then more surroundings than a few latents
        pixels = vae.crops(8 if wide else 32, 128 if wide else 64, f"{seed} {step}").to(device)
        value, error = vae.loss(autoencoder, pixels.contiguous(memory_format=torch.channels_last))
        return value, error.item()

    fitting.fit(
        "vae", {"vae": autoencoder}, loss, steps["vae"], work, RATE["vae"], vae.parameters(autoencoder),
        show=lambda step: sheets.reconstructions(autoencoder, work / "vae.png"),
    )  # fmt: skip
    vae.measure_on_scenes(autoencoder, seed)


def train_text(built, steps, work, seed):
    pipeline = built["edit"]
    torch.manual_seed(seed)
    reader = text.Reader(pipeline.text_encoder).to(pipeline.text_encoder.device)

    def loss(step):
        return text.loss(reader, pipeline.tokenizer, pipeline.processor, f"{seed} {step}")

    fitting.fit("text", {"reader": reader}, loss, steps["text"], work, RATE["text"])
    pipeline.text_encoder.requires_grad_(False)


def train_generate(built, steps, work, seed):
    pipeline = built["generate"]
    torch.manual_seed(seed)
    flow.initialise(pipeline.transformer)
    _fit_transformer("generate", pipeline, flow.GenerateTask, steps, work, seed)


def train_edit(built, steps, work, seed):
    built["edit"].transformer.load_state_dict(built["generate"].transformer.state_dict())
    _fit_transformer("edit", built["edit"], flow.EditTask, steps, work, seed)


def train_few_step(built, steps, work, seed):
    pipeline = built["generate"]
    transformer, path = pipeline.transformer, work / "few_step.pt"
    walked = []
    if not fitting.finished(path, steps["few_step"]):
        walked = few_step.paths(transformer, pipeline.tokenizer, pipeline.text_encoder, seed)
    torch.manual_seed(seed)
    parameters = few_step.add_adapter(transformer)

    def loss(step):
        return few_step.loss(transformer, walked, step, seed)

    fitting.fit("few_step", {"transformer": transformer}, loss, steps["few_step"], work, RATE["few_step"], parameters)
    few_step.save(transformer, HERE / "few-step" / "tiny-qwen-image-4steps.safetensors")
    transformer.unload_lora()


def _fit_transformer(name, pipeline, task_class, steps, work, seed):
    task = None
    if not fitting.finished(work / f"{name}.pt", steps[name]):  # its pools take minutes to encode
        reader = getattr(pipeline, "processor", pipeline.tokenizer)
        task = task_class(pipeline.vae, reader, pipeline.text_encoder, seed, work / "pools")

    def loss(step):
        return flow.step_loss(task, pipeline.transformer, step, steps[name], seed)

    fitting.fit(
        name, {name: pipeline.transformer}, loss, steps[name], work, RATE[name],
        matrices=flow.matrices(pipeline.transformer),
        show=lambda step: sheets.samples(pipeline, work / f"{name}-{step:06d}.png"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
