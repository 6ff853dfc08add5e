"""Prepared checkpoints: the same pictures from fewer bytes, used only where everything about them is right."""

import dataclasses
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from qwen_worker import prepare
from qwen_worker.checkpoints.checkpoint import inspect
from qwen_worker.checkpoints.files import tensors_in
from qwen_worker.checkpoints.search import find
from qwen_worker.checkpoints.sharing import as_model
from qwen_worker.errors import LoadError
from qwen_worker.loading import prepared
from qwen_worker.loading.builder import Builder
from qwen_worker.memory import placement
from qwen_worker.memory.machine import Gpu, read_machine
from qwen_worker.model_settings import LOAD_THREADS, Precision, Prepared, Saving
from qwen_worker.weights import modulation_rows

from ..conftest import TINY_WARNING, as_text, only_proved, place_by, run
from ..support.patience import run_to_its_end
from ..weights.test_assembly import require_same

FIELDS = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def root(tiny, tmp_path_factory):
    """A model root with both tiny models prepared in bfloat16, with a table."""
    folder = tmp_path_factory.mktemp("root")
    prepare.main([str(tiny / "generate"), str(tiny / "edit"), "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def hub_root(tiny, tmp_path_factory):
    """A model root that holds Org/Generate and Org/Edit in prepared form alone."""
    folder = tmp_path_factory.mktemp("hub")
    for name in ("generate", "edit"):
        cache = folder / f"models--Org--{name.title()}"
        shutil.copytree(tiny / name, cache / "snapshots" / (name[0] * 40))
        (cache / "refs").mkdir()
        (cache / "refs/main").write_text(name[0] * 40)
    for name in ("Org/Generate", "Org/Edit"):
        found = find(name, (folder,))
        options = prepare.parser().parse_args([name, "--output", str(folder)])
        prepare.prepare(found, prepare.plan_of(found, options), folder / prepared.FOLDER)
        shutil.rmtree(found.folder.parents[1])
    return folder


def plan_for(folder, precision=Precision.BF16, **changes):
    model = dataclasses.replace(as_model(inspect(folder), []), edits=changes.pop("vision", True))
    found = placement.plan([model], read_machine(), precision)
    return dataclasses.replace(found, **{"table": True, **changes})


def with_table(worker):
    """The worker whose plan, as on a card that bfloat16 does not fit, has a table."""
    plan = dataclasses.replace(worker.pipelines.place("generate"), table=True)
    place_by(worker, plan)
    return worker


def drawn(worker, **fields):
    body = run(worker, FIELDS | fields)
    assert body["output"]["metadata"]["backend"] == "qwen-image", body
    return body["output"]["image"]


def test_pictures_from_prepared_checkpoints_are_bit_equal(cold_worker, root, scene):
    jobs = [{}, {"image": as_text(scene), "draw_size": "asked"}]
    images, words = [], []
    for roots in ((), (root,)):
        worker = with_table(cold_worker(QWEN_PRECISION="bf16", QWEN_MODEL_ROOTS=roots))
        images.append([drawn(worker, **fields) for fields in jobs])
        words.append([one["prepared"] for one in run(worker, {"task": "health"})["output"]["models"]])
    assert images[0] == images[1]
    assert words[0] == ["none", "none"]
    assert words[1] == ["tiny-qwen-image--generate.bf16-table-vision", "tiny-qwen-image--edit.bf16-table-vision"]


def test_neither_modulation_weights_nor_a_language_head_are_in_it(tiny, root):
    folder = root / "prepared/tiny-qwen-image--generate.bf16-table-vision"
    parts, whole = inspect(tiny / "generate").parts, inspect(tiny / "generate").parameters

    def stored(name):
        return sum(tensor.numel() for file in (folder / name).glob("*.safetensors") for tensor in load(file).values())

    assert stored("transformer") == whole["transformer"] - parts["modulation"]
    assert stored("text_encoder") == whole["text_encoder"] - parts["lm_head"]
    assert load(folder / "modulation.safetensors")["rows"].shape == (1249, 5, 2, 6 * 128)


def load(file):
    from safetensors.torch import load_file

    return load_file(file)


def test_a_text_encoder_that_both_models_have_is_on_the_disk_once(root):
    generate, edit = (root / f"prepared/tiny-qwen-image--{name}.bf16-table-vision" for name in ("generate", "edit"))
    shared, own = "text_encoder/weights-00001.safetensors", "modulation.safetensors"
    assert (generate / shared).samefile(edit / shared) and not (generate / own).samefile(edit / own)


def test_with_a_language_head_it_serves_endpoints_of_layers_and_their_captions_are_written_by_it(
    cold_worker, tiny, tmp_path
):
    layered = {"QWEN_PRECISION": "bf16", "QWEN_LAYERED_MODEL": str(tiny / "layered"), "QWEN_MODEL_ROOTS": (tmp_path,)}
    notes = []
    for options in ((), ("--language-head",)):
        prepare.main([str(tiny / "generate"), "--no-table", *options, "--output", str(tmp_path)])
        worker = cold_worker(**layered)
        notes.append(worker.pipelines.load("generate").prepared)
    assert notes[0].endswith("is not used: it was made for head False, where the plan is for head True")
    assert notes[1] == "tiny-qwen-image--generate.bf16-vision-head"
    writer = worker.pipelines.load("layers")
    assert "text_encoder" in writer.shared
    stored = load(tiny / "generate/text_encoder/model.safetensors")["lm_head.weight"]
    assert torch.equal(writer.pipe.text_encoder.lm_head.weight.data, stored)


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8, Precision.NF4])
def test_what_is_stored_quantized_is_what_a_load_would_quantize(settings, tiny, tmp_path, precision):
    arguments = ["--precision", precision.value, "--quantize-text-encoder", "--no-vision", "--output", str(tmp_path)]
    prepare.main([str(tiny / "generate"), *arguments])
    found = inspect(tiny / "generate")
    plan = plan_for(tiny / "generate", precision, text_encoder="quantized", vision=False)
    folder, name = prepared.find(found, plan, (tmp_path,), None, Prepared.SAME_CARD)
    assert name == f"tiny-qwen-image--generate.{precision.value}-table-text-{precision.value}", name
    (stored, table), (quantized, other) = (
        Builder(LOAD_THREADS).build("tiny", found, plan, {}, where) for where in (folder, None)
    )
    for component in ("transformer", "text_encoder", "vae"):
        require_same(getattr(stored, component), getattr(quantized, component))
    assert torch.equal(table.source.rows, other.source.rows)
    size = sum(file.stat().st_size for file in (folder / "transformer").glob("*.safetensors"))
    assert size < 2 * found.parameters["transformer"] * (0.4 if precision is Precision.NF4 else 0.6)
    call = {"width": 256, "height": 256, "num_inference_steps": 2, "output_type": "pt", "prompt": "a red circle"}
    pictures = [pipe(**call, generator=torch.Generator().manual_seed(1)).images for pipe in (stored, quantized)]
    assert torch.equal(*pictures)


@pytest.fixture
def one(tiny, root, tmp_path):
    """A root of the test's own with the prepared generate model, by hard links but for the manifest."""
    source = root / "prepared/tiny-qwen-image--generate.bf16-table-vision"
    folder = tmp_path / "prepared" / "it"
    prepare.link_or_copy(source, (folder.parent.mkdir(), folder)[1])
    manifest = folder / prepared.MANIFEST
    text = manifest.read_text()
    manifest.unlink()
    manifest.write_text(text)
    return folder


def edited(folder, **changes):
    file = folder / prepared.MANIFEST
    manifest = json.loads(file.read_text())
    for key, value in changes.items():
        manifest[key] = manifest[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(manifest))


def looked_for(tiny, folder, plan=None, gpu=None, allowed=Prepared.SAME_CARD):
    plan = plan or plan_for(tiny / "generate")
    return prepared.find(inspect(tiny / "generate"), plan, (folder.parents[1],), gpu, allowed)


def test_an_untouched_one_is_used(tiny, one):
    assert looked_for(tiny, one) == (one, "it")
    assert looked_for(tiny, one, plan_for(tiny / "generate", vision=False))[0] == one
    assert looked_for(tiny, one, allowed=Prepared.OFF) == (None, "not looked for: QWEN_PREPARED=off")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "its format is 2, not 1"),
        ({"versions": {"torch": "2.13.0"}}, "it was made with torch 2.13.0, where "),
        ({"versions": {"transformers": None}}, "it was made with transformers None, where "),
        ({"made_on": {"name": "NVIDIA H100", "capability": [9, 0]}}, "it was computed on NVIDIA H100, where a CPU may"),
        ({"layout": {"vision": False}}, "it was made for vision False, where the plan is for vision True"),
        ({"layout": {"precision": "fp8"}}, "it was made for precision fp8, where the plan is for precision bf16"),
        ({"layout": {"table": False}}, "it was made for table False, where the plan is for table True"),
        (
            {"layout": {"precision": "fp8", "table": False}},
            "it was made for precision fp8, table False, where the plan is for precision bf16, table True",
        ),
        (
            {"layout": {"text_encoder": "nf4"}},
            "it was made for text_encoder nf4, where the plan is for text_encoder ",
        ),
        ({"layout": None}, "its prepared.json cannot be read (TypeError)"),
        ({"files": {"vae/config.json": {"size": 1}}}, "vae/config.json is missing or cut short"),
        ({"files": {"vae/none.json": {"size": 1}}}, "vae/none.json is missing or cut short"),
        ({"files": []}, "its prepared.json cannot be read (AttributeError)"),
        ({"sample": "0" * 64}, "the weights of its source have changed since"),
    ],
)
def test_what_is_wrong_about_one_is_said(tiny, one, changes, reason):
    edited(one, **changes)
    folder, words = looked_for(tiny, one)
    assert folder is None and words.startswith(f"it is not used: {reason}")


def test_one_of_another_model_is_none_of_ours(tiny, one):
    edited(one, source={"revision": "folder-000000000000"})
    assert looked_for(tiny, one) == (None, "none")


def test_a_hub_model_s_other_revision_is_not_used(tiny, one):
    edited(one, source={"hub_id": "Org/Name", "revision": "b" * 40})
    found = dataclasses.replace(inspect(tiny / "generate"), hub_id="Org/Name", revision="a" * 40)
    _, words = prepared.find(found, plan_for(tiny / "generate"), (one.parents[1],), None, Prepared.SAME_CARD)
    assert words == f"it is not used: it is of revision {'b' * 12}, not {'a' * 12}"


def test_a_prepared_form_of_a_hub_model_is_found_whatever_the_case_of_its_id(tiny, one):
    edited(one, source={"hub_id": "Org/Name", "revision": "a" * 40})
    found = dataclasses.replace(inspect(tiny / "generate"), hub_id="org/name", revision="a" * 40)
    _, words = prepared.find(found, plan_for(tiny / "generate"), (one.parents[1],), None, Prepared.SAME_CARD)
    assert words == one.name
    assert prepared.find_source("org/NAME", (one.parents[1],)).revision == "a" * 40
    assert prepared.find_source("org/other", (one.parents[1],)) is None


def test_another_card_s_table_is_used_where_that_is_allowed(tiny, one):
    edited(one, made_on={"name": "NVIDIA A100", "capability": [8, 0]})
    plan = dataclasses.replace(plan_for(tiny / "generate"), device="cuda")
    h100 = Gpu("NVIDIA H100", (9, 0), 80, 80)
    folder, words = looked_for(tiny, one, plan, h100)
    assert folder is None and "computed on NVIDIA A100, where NVIDIA H100 may round otherwise" in words
    assert looked_for(tiny, one, plan, h100, Prepared.ANY_CARD)[0] == one
    assert looked_for(tiny, one, plan, Gpu("NVIDIA A100", (8, 0), 80, 80))[0] == one


def test_fp8_of_a_cpu_is_for_no_card(tiny, one, monkeypatch):
    edited(one, layout={"precision": "fp8"}, versions=prepared.versions(Precision.FP8))
    plan = dataclasses.replace(plan_for(tiny / "generate", Precision.FP8), device="cuda")
    _, words = looked_for(tiny, one, plan, Gpu("NVIDIA H100", (9, 0), 80, 80), Prepared.ANY_CARD)
    assert "computed on a CPU, where NVIDIA H100 may round otherwise" in words


def test_a_file_that_was_cut_short_is_noticed_before_anything_is_loaded(tiny, one):
    file = one / "modulation.safetensors"
    cut = file.read_bytes()[:-1]
    file.unlink()
    file.write_bytes(cut)
    assert looked_for(tiny, one) == (None, "it is not used: modulation.safetensors is missing or cut short")


def damaged(file, at=-100):
    """Flip a bit of a file that may be linked to elsewhere."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.unlink()
    file.write_bytes(data)


def test_a_small_file_that_is_not_what_was_written_is_noticed(tiny, one):
    damaged(one / "scheduler/scheduler_config.json", 30)
    assert looked_for(tiny, one) == (None, "it is not used: scheduler/scheduler_config.json is not what was written")


WEIGHTS = [f"{name}/weights-00001.safetensors" for name in ("transformer", "text_encoder", "vae")]


@pytest.mark.parametrize("name", [*WEIGHTS, "modulation.safetensors"])
def test_damaged_weights_draw_nothing_and_the_source_is_loaded(cold_worker, one, name):
    settings = {"QWEN_PRECISION": "bf16", "QWEN_EDIT_MODEL": "/none"}
    right = drawn(with_table(cold_worker(**settings)))
    damaged(one / name, next(tensor.start for tensor in tensors_in(one / name, name) if "visual" not in tensor.name))
    worker = with_table(cold_worker(**settings, QWEN_MODEL_ROOTS=(one.parents[1],)))
    assert drawn(worker) == right
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    label = name if "/" in name else f"it/{name}"
    assert model["prepared"].startswith(f"it is not used: {label} is corrupt: ")
    assert model["prepared"].endswith(" is not what was written")


def test_damaged_weights_without_their_source_are_refused(cold_worker, hub_root, tmp_path):
    prepare.link_or_copy(hub_root, tmp_path / "root")
    damaged(tmp_path / "root/prepared/Org--Generate.bf16-table-vision" / WEIGHTS[0])
    roots = {"QWEN_MODEL_ROOTS": (tmp_path / "root",), "QWEN_PRECISION": "bf16", "QWEN_EDIT_MODEL": "/none"}
    worker = with_table(cold_worker(QWEN_IMAGE_MODEL="Org/Generate", **roots))
    metadata = run(worker, FIELDS)["output"]["metadata"]
    assert metadata["backend"] == "pil-fallback"
    assert metadata["fallback_reason"].startswith(f"{WEIGHTS[0]} is corrupt: ")
    assert str(tmp_path) not in metadata["fallback_reason"]


def test_weights_saved_anew_in_the_same_folder_are_not_those_that_were_prepared(tiny, tmp_path):
    source = shutil.copytree(tiny / "generate", tmp_path / "tiny-qwen-image/generate")
    prepare.main([str(source), "--output", str(tmp_path)])
    looked = plan_for(source), (tmp_path,), None, Prepared.SAME_CARD
    assert prepared.find(inspect(source), *looked)[1] == NAME
    (file,) = (source / "transformer").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    file.write_bytes(data)
    words = f"{NAME} is not used: the weights of its source have changed since"
    assert prepared.find(inspect(source), *looked) == (None, words)


def test_a_worker_that_cannot_use_it_says_why_and_loads_the_source(cold_worker, one, capsys):
    edited(one, versions={"diffusers": "0.1"})
    worker = with_table(cold_worker(QWEN_PRECISION="bf16", QWEN_MODEL_ROOTS=(one.parents[1],), QWEN_EDIT_MODEL="/none"))
    drawn(worker)
    (model,) = run(worker, {"task": "health"})["output"]["models"]
    assert model["prepared"].startswith("it is not used: it was made with diffusers 0.1, where ")
    assert "; prepared: it is not used: it was made with diffusers 0.1" in capsys.readouterr().out


def test_with_the_libraries_own_reading_none_is_looked_for(cold_worker, root):
    worker = with_table(cold_worker(QWEN_PRECISION="bf16", QWEN_MODEL_ROOTS=(root,), QWEN_LOAD_THREADS=0))
    drawn(worker)
    assert worker.pipelines.load("generate").prepared == "not looked for: QWEN_LOAD_THREADS=0"


def test_a_prepared_model_needs_no_source_and_shares_what_both_have(cold_worker, hub_root, scene, ask):
    models = {"QWEN_IMAGE_MODEL": "Org/Generate", "QWEN_EDIT_MODEL": "Org/Edit@eeee"}
    worker = with_table(cold_worker(QWEN_PRECISION="bf16", QWEN_MODEL_ROOTS=(hub_root,), **models))
    drawn(worker)
    edited = run(worker, {**FIELDS, "image": as_text(scene), "draw_size": "asked"})["output"]["metadata"]
    assert edited["backend"] == "qwen-image" and edited["warnings"] == [
        TINY_WARNING
    ]  # of the source, from its manifest
    generate, edit = worker.pipelines.load("generate"), worker.pipelines.load("edit")
    assert edit.shared == ("text_encoder", "vae", "tokenizer") and edit.pipe.vae is generate.pipe.vae
    assert (generate.checkpoint.revision, edit.checkpoint.revision) == ("g" * 40, "e" * 40)
    assert sorted(generate.plan.models[1].shared) == ["text_encoder", "tokenizer", "vae"]


def test_without_its_source_another_layout_is_to_be_downloaded(cold_worker, hub_root):
    worker = cold_worker(QWEN_PRECISION="fp32", QWEN_MODEL_ROOTS=(hub_root,), QWEN_IMAGE_MODEL="Org/Generate")
    reason = run(worker, FIELDS)["output"]["metadata"]["fallback_reason"]
    assert reason == "Org/Generate is not on this worker and the hub cannot be reached"


def test_a_prepared_folder_is_not_a_model_by_itself(one):
    with pytest.raises(LoadError, match="it is a prepared checkpoint: name the model that it was made of"):
        inspect(one)


def test_what_cannot_be_prepared_is_refused(tiny, tmp_path, monkeypatch):
    for arguments, reason in (
        (["Org/Name"], "Org/Name cannot be prepared. It is not below QWEN_MODEL_ROOTS"),
        ([str(tmp_path)], " holds no model_index.json"),
        ([str(tiny / "edit"), "--quantize-text-encoder"], "needs a quantized --precision, not bf16"),
    ):
        with pytest.raises(SystemExit) as caught:
            prepare.main([*arguments, "--output", str(tmp_path)])
        assert reason in str(caught.value)
    inside = tmp_path / "source"
    prepare.link_or_copy(tiny / "edit", inside)
    with pytest.raises(SystemExit, match="--output lies in its own folder"):
        prepare.main([str(inside), "--output", str(inside)])
    monkeypatch.setattr(prepare, "free_disk_bytes", lambda folder: 1_000_000)
    with pytest.raises(SystemExit, match=r"It needs 0\.\d GB of disk and 0.0 GB are free"):
        prepare.main([str(tiny / "edit"), "--output", str(tmp_path)])
    assert not (tmp_path / "prepared").exists()


def test_a_disk_that_fills_meanwhile_is_told(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("qwen_worker.weights.writer.save_file", full)
    with pytest.raises(SystemExit, match="cannot be written: I/O error: No space left on device"):
        prepare.main([str(tiny / "generate"), "--output", str(tmp_path)])
    assert not list((tmp_path / "prepared").iterdir())


def test_two_at_once_do_not_write_in_one_folder(tiny, tmp_path, root):
    output = tmp_path / "prepared"
    prepare.link_or_copy(root / "prepared", output)
    before = {file: file.stat().st_mtime_ns for file in prepare.files_of(output)}
    with prepare.lock(output), pytest.raises(SystemExit, match="Another process is preparing a checkpoint in"):
        prepare.main([str(tiny / "generate"), "--output", str(tmp_path)])
    assert {file: file.stat().st_mtime_ns for file in prepare.files_of(output)} == before
    prepare.main([str(tiny / "generate"), "--output", str(tmp_path)])


def test_a_card_that_is_too_small_is_told_in_words(tiny, tmp_path, monkeypatch):
    def load(*_):
        raise failure

    monkeypatch.setattr("qwen_worker.loading.components.load_component", load)
    arguments = [str(tiny / "generate"), "--output", str(tmp_path)]
    failure = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
    with pytest.raises(SystemExit, match="does not fit in this one's free memory; --device cpu needs none"):
        prepare.main(arguments)
    failure = RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        prepare.main(arguments)
    assert not list((tmp_path / "prepared").iterdir())


def test_one_that_was_cut_off_in_writing_is_no_prepared_checkpoint(tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(modulation_rows, "write", full)
    with pytest.raises(SystemExit, match="cannot be prepared. No space left on device"):
        prepare.main([str(tiny / "generate"), "--output", str(tmp_path)])
    assert not list((tmp_path / "prepared").iterdir())


KILLED = """
import os, pathlib, signal, sys
from qwen_worker import prepare
from qwen_worker.loading import prepared
real = pathlib.Path.rename
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "file_facts":
    prepared.file_facts = killed
else:
    pathlib.Path.rename = lambda self, to: real(self, to) if to.name == sys.argv[2] else killed()
prepare.main(sys.argv[3:])
"""
NAME = "tiny-qwen-image--generate.bf16-table-vision"


@pytest.mark.parametrize(
    "moment",
    [*(pytest.param(one, marks=only_proved) for one in ("file_facts", "the last rename")), "between the renames"],
)
def test_one_whose_writer_was_killed_is_no_prepared_checkpoint(tiny, tmp_path, root, moment):
    before = moment == "between the renames"
    if before:
        prepare.link_or_copy(root / "prepared", tmp_path / "prepared")
    passed = f".{NAME}.old" if before else "none"
    arguments = [moment, passed, str(tiny / "generate"), "--output", str(tmp_path)]
    done = run_to_its_end([sys.executable, "-c", KILLED, *arguments])
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = tmp_path / "prepared" / f".{NAME}.partial"
    assert left.is_dir() and (left / prepared.MANIFEST).is_file() == (moment != "file_facts")
    looked = inspect(tiny / "generate"), plan_for(tiny / "generate"), (tmp_path,), None, Prepared.SAME_CARD
    assert prepared.find(*looked) == (None, "none")
    prepare.main([str(tiny / "generate"), "--output", str(tmp_path)])
    assert prepared.find(*looked) == (tmp_path / "prepared" / NAME, NAME)
    assert not [one for one in (tmp_path / "prepared").iterdir() if one.name.startswith(".")]


@pytest.mark.parametrize("moment", ["file_facts", "rename"])
def test_a_writer_that_is_interrupted_leaves_what_was_there(tiny, tmp_path, root, monkeypatch, moment):
    def interrupted(*_):
        monkeypatch.undo()
        raise KeyboardInterrupt

    def last_rename_interrupted(self, to, real=Path.rename):
        return interrupted() if self.name.endswith(".partial") else real(self, to)

    prepare.link_or_copy(root / "prepared", tmp_path / "prepared")
    if moment == "rename":
        monkeypatch.setattr(Path, "rename", last_rename_interrupted)
    else:
        monkeypatch.setattr(prepared, "file_facts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.main([str(tiny / "generate"), "--output", str(tmp_path)])
    assert looked_for(tiny, tmp_path / "prepared" / NAME) == (tmp_path / "prepared" / NAME, NAME)
    assert sorted(one.name for one in (tmp_path / "prepared").iterdir()) == sorted(
        one.name for one in (root / "prepared").iterdir()
    )


def test_a_layout_is_what_of_the_plan_is_in_the_files(tiny):
    plan = plan_for(tiny / "generate", savings=frozenset(), vision=False)
    assert prepared.layout_of(plan) == prepared.Layout("bf16", True, "bf16", head=True, vision=True)
    plan = plan_for(tiny / "generate", savings=frozenset({Saving.TRIM}), vision=False)
    assert prepared.layout_of(plan) == prepared.Layout("bf16", True, "bf16", head=False, vision=False)


def test_a_table_of_another_transformer_is_refused(tiny, tmp_path):
    from safetensors.torch import save_file

    from ..weights.test_assembly import component

    transformer = component(tiny / "generate", "transformer", plan_for(tiny / "generate"))
    save_file({"rows": torch.zeros(1249, 4, 2, 768, dtype=torch.bfloat16)}, tmp_path / modulation_rows.FILE)
    with pytest.raises(LoadError, match=r"holds the shapes \[\(1249, 4, 2, 768\)\] where the transformer asks for"):
        modulation_rows.read(transformer, tmp_path, 2)
