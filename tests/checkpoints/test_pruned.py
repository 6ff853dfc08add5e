"""Pruned and re-trained checkpoints: with fewer layers they load by their class, and are planned from their headers."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from qwen_worker.checkpoints import checkpoint, classes, remote
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Gpu, Machine

from ..conftest import as_text, respond, run
from ..null_card.sparse import write_hole
from ..support import local_hub

GB = 10**9
SMALL = {"prompt": "a red circle on the left", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 5}
PLUS = "QwenImageEditPlusPipeline"


def prune(folder, layers):
    """Leave so many of the blocks of a checkpoint's transformer, as who prunes one does."""
    import diffusers

    transformer = diffusers.QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
    assert layers < len(transformer.transformer_blocks)
    transformer.transformer_blocks = transformer.transformer_blocks[:layers]
    transformer.register_to_config(num_layers=layers)
    shutil.rmtree(folder / "transformer")
    transformer.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def shapes():
    """shapes(component, layers): the names and shapes of the released architecture's tensors, with so many blocks."""
    from benchmarks.measure import full_size

    models = full_size.empty_models()

    def of(component, layers=60):
        names = models[component].state_dict()
        tensors = [(name, tuple(tensor.shape)) for name, tensor in names.items()]
        return [one for one in tensors if not is_block_beyond(one[0], layers)]

    return of


def is_block_beyond(name, layers):
    parts = name.split(".")
    return parts[0] == "transformer_blocks" and int(parts[1]) >= layers


def write_full_size(folder, shapes, tiny, layers, class_name="QwenImagePipeline", **index):
    """A checkpoint whose weights are holes: true headers at full size, and the tiny one's other files."""
    source = tiny / ("generate" if class_name == "QwenImagePipeline" else "edit")
    left_out = shutil.ignore_patterns("*.safetensors", "*.index.json")
    shutil.copytree(source, folder, ignore=left_out)
    for name in classes.WEIGHTS:
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write_hole(folder / name / f"{stem}.safetensors", shapes(name, layers))
    for file, changes in (
        ("model_index.json", {"_class_name": class_name, "_draws_only": None, **index}),
        ("transformer/config.json", {"num_layers": layers, "num_attention_heads": 24, "attention_head_dim": 128}),
        ("vae/config.json", {"temperal_downsample": [False, True, True]}),
    ):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def planned(found, card, capability=(8, 9), ram=64):
    machine = Machine(Gpu("NVIDIA Test", capability, card * GB, card * GB), ram * GB, ram * GB)
    return placement.plan([as_model(found, ())], machine)


def test_a_checkpoint_with_fewer_layers_loads_by_its_class_and_draws(cold_worker, tiny, tmp_path):
    folder = prune(Path(shutil.copytree(tiny / "generate", tmp_path / "pruned")), 3)
    whole, found = checkpoint.inspect(tiny / "generate"), checkpoint.inspect(folder)
    share = found.parts["matrices"] / whole.parts["matrices"]
    assert 0 < share < 1 and found.parameters["transformer"] < whole.parameters["transformer"]
    assert found.parts["modulation"] == pytest.approx(share * whole.parts["modulation"])
    worker = cold_worker(QWEN_IMAGE_MODEL=str(folder), QWEN_FALLBACK="forbid")
    facts = run(worker, SMALL)["output"]["metadata"]
    assert facts["backend"] == "qwen-image" and facts["steps"] == 2
    loaded = worker.pipelines.get("generate")
    assert len(loaded.pipe.transformer.transformer_blocks) == 3 and not loaded.stood_down


def test_a_re_trained_edit_checkpoint_takes_as_many_pictures_as_its_class(cold_worker, tiny, tmp_path, scene):
    folder = Path(shutil.copytree(tiny / "edit", tmp_path / "FireRed-Image-Edit-1.1"))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": PLUS}))
    worker = cold_worker(QWEN_EDIT_MODEL=str(prune(folder, 3)), QWEN_FALLBACK="forbid")
    small = as_text(scene.resize((256, 256)))
    for count in (1, 3):
        facts = run(worker, SMALL | {"images": [small] * count, "draw_size": "asked"})["output"]["metadata"]
        assert facts["backend"] == "qwen-image", count
    known = run(worker, {})["output"]["checkpoints"]["edit"]
    assert known["class"] == PLUS and known["most_images"] == classes.PIPELINE_CLASSES[PLUS].max_images


@pytest.mark.parametrize(("layers", "billions"), [(60, 20.43), (38, 12.95), (35, 11.93)])
def test_a_full_size_one_is_planned_from_its_headers(tiny, tmp_path, shapes, layers, billions):
    found = checkpoint.inspect(write_full_size(tmp_path / "pruned", shapes, tiny, layers))
    assert round(found.parameters["transformer"] / 1e9, 2) == billions and found.size_multiple == 16
    assert found.parts["modulation"] == layers * classes.PARTS_20B["modulation"] // 60
    weights = {card: planned(found, card) for card in (24, 48, 80)}
    whole = planned(checkpoint.released("Qwen/Qwen-Image"), 48)
    assert weights[48].precision.value == weights[80].precision.value == "bf16"
    if layers == 60:
        assert weights[48].weight_bytes == whole.weight_bytes and weights[24].precision.value == "fp8"
    else:  # so small that it is exact on 24 GB, with the modulation's table and a streamed text encoder
        assert weights[24].precision.value == "bf16" and weights[24].table
        least = 2 * (found.parameters["transformer"] - found.parts["modulation"])
        assert least <= weights[24].weight_bytes <= 2 * found.parameters["transformer"]


@pytest.fixture
def hub_of(web, monkeypatch, tmp_path):
    """hub_of(folder, hub_id): a hub that holds it, and an empty cache. Holes are not read for their digests."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    digest = lambda file: hashlib.sha256(f"{file} {file.stat().st_size}".encode()).hexdigest()  # noqa: E731
    monkeypatch.setattr(local_hub, "sha256", digest)

    def serve(folder, hub_id="Org/Name"):
        served = local_hub.LocalHub({hub_id: folder})
        monkeypatch.setenv("HF_ENDPOINT", web(served))
        return served

    return serve


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_one_on_the_hub_is_planned_exactly_before_its_weights_are_fetched(hub_of, tiny, tmp_path, shapes, knows_ranges):
    """With what its bytes alone say, no saving is known, and 20B would be refused on 24 GB."""
    hub_id = "FireRedTeam/FireRed-Image-Edit-1.1"
    folder = write_full_size(tmp_path / "firered", shapes, tiny, 60, PLUS)
    served = hub_of(folder, hub_id)
    served.knows_ranges = knows_ranges
    found = remote.look_up(hub_id)
    here = checkpoint.inspect(folder)
    assert (found.parameters, found.parts, found.class_name) == (here.parameters, here.parts, PLUS)
    assert (found.folder, found.hub_id, found.revision) == (None, hub_id, served.commit(hub_id))
    assert found.defaults.steps == 40 and found.report()["licence"] == "Apache-2.0"
    assert str(planned(found, 24)) == str(planned(here, 24)) and planned(found, 24).precision.value == "fp8"
    stored = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert found.stored_bytes == stored > 57 * GB
    fetched = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert fetched < 1_000_000 and not any(tmp_path.glob("qwen-headers-*"))
    if knows_ranges:
        assert len(served.looked_at) == 4 and not served.sent  # of the transformer's header, a second part
    assert all(sent < 50_000_000 for sent in served.sent.values())


@pytest.mark.parametrize(("damage", "words"), [
    (lambda file: file.write_bytes(b"\xff" * 5000), "is corrupt: it does not begin with a safetensors header"),
    (lambda file: file.write_bytes(file.read_bytes() + b"x"), "is corrupt: its header describes"),
])  # fmt: skip
def test_headers_that_do_not_fit_their_files_are_refused_before_a_weight_is_fetched(
    hub_of, tiny, tmp_path, damage, words
):
    folder = Path(shutil.copytree(tiny / "generate", tmp_path / "own"))
    damage(next((folder / "vae").glob("*.safetensors")))
    served = hub_of(folder)
    with pytest.raises(LoadError, match=words):
        remote.look_up("Org/Name")
    assert not served.sent


@pytest.mark.parametrize(("status", "transient"), [(503, True), (404, False)])
def test_a_hub_that_gives_no_header_is_a_failure_by_its_answer(hub_of, tiny, monkeypatch, status, transient):
    served = hub_of(tiny / "generate")
    monkeypatch.setattr(served, "send_object", lambda handler, hub_id, name: respond(handler, b"{}", status))
    with pytest.raises(LoadError) as caught:
        remote.look_up("Org/Name")
    assert caught.value.transient is transient and "Org/Name/transformer/" in caught.value.reason
