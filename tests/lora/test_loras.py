"""A job's LoRAs from its fields to its picture: every trainer's file, every refusal, and a worker that lives on."""

import asyncio
import dataclasses
import json
import os
import pickle
import string

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from qwen_worker.errors import CODES
from qwen_worker.model_settings import Precision

from ..conftest import place_by, respond, run, warnings_of
from ..drawing.test_batching import together
from ..support.local_hub import LocalHub
from ..support.lora_files import FORMATS, LAYERS, PLAIN, matrices, write
from ..worker.test_hostile_inputs import FORBIDDEN, nasty, scalars, text, values
from ..worker.test_stops import stopped

SMALL = {"prompt": "a red circle on the left", "width": 256, "height": 256, "seed": 5, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def base(tiny):
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel.from_pretrained(tiny / "generate/transformer", dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def worker(tiny, folder, tmp_path_factory):
    """One that has a folder of LoRAs."""
    import runpod_handler
    from qwen_worker.settings import Settings

    return runpod_handler.Worker(
        Settings(
            QWEN_IMAGE_MODEL=str(tiny / "generate"), QWEN_EDIT_MODEL=str(tiny / "edit"), QWEN_MODEL_ROOTS=(),
            QWEN_LORA_ROOTS=str(folder), QWEN_LORA_MB=2000, QWEN_LORA_SECONDS=5,
        )
    )  # fmt: skip


@pytest.fixture(autouse=True)
def caches_here(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))


def drawn(worker, *loras, **fields):
    body = run(worker, SMALL | {"loras": list(loras)} | fields)
    assert "error" not in body, body["error"]
    return body["output"]


def refused(worker, *loras, **fields):
    """The error of a job with these LoRAs, after which the worker draws as ever."""
    body = run(worker, SMALL | {"loras": list(loras)} | fields)
    assert "error" in body
    assert run(worker, {})["output"]["status"] == "healthy"
    return body["error"]


@pytest.fixture(scope="module")
def plain(worker):
    return run(worker, SMALL)["output"]["image"]


# Files of every kind


def test_every_trainer_s_file_of_one_lora_draws_the_same_picture(worker, base, folder, plain):
    weights = matrices(base, LAYERS, seed=3)
    pictures = {}
    for number, form in enumerate(FORMATS):
        write(folder / f"form-{number}.safetensors", weights, form)
        pictures[form] = drawn(worker, {"path": f"form-{number}.safetensors", "scale": 0.8})["image"]
    assert len(set(pictures.values())) == 1 and plain not in pictures.values()


def test_loras_add_up_by_their_scales_and_the_reply_names_them(worker, base, folder, plain):
    for name in "ab":
        write(folder / f"{name}.safetensors", matrices(base, PLAIN, seed=ord(name)))
    a, b = {"path": "a.safetensors"}, {"path": "b.safetensors", "scale": -0.5}
    both = drawn(worker, a, b)
    named = [a | {"scale": 1.0, "strength": 1.0}, b | {"strength": -0.5}]
    assert both["metadata"]["loras"] == named and both["metadata"]["preset"] == "quality"
    assert len({both["image"], drawn(worker, a)["image"], drawn(worker, b)["image"], plain}) == 4
    assert drawn(worker, a | {"scale": 0})["image"] == plain == run(worker, SMALL)["output"]["image"]
    assert drawn(worker, b, a)["image"] != plain
    assert "loras" not in run(worker, SMALL)["output"]["metadata"]


def strengths(output):
    return [lora.get("strength") for lora in output["metadata"]["loras"]]


def test_a_strength_that_peft_or_plain_metadata_say_is_drawn_and_told(worker, base, folder):
    weights = matrices(base, PLAIN, seed=11)
    write(folder / "alpha-16.safetensors", weights, "kohya, musubi", alpha=16)
    write(folder / "peft/adapter_model.safetensors", weights, "peft")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["to_q"]}
    (folder / "peft/adapter_config.json").write_text(json.dumps(config))
    with safe_open(folder / "peft/adapter_model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, folder / "plain.safetensors", metadata={"lora_alpha": "16", "rank": "4"})
    expected = drawn(worker, {"path": "alpha-16.safetensors", "scale": 0.2})
    for path in ("peft/adapter_model.safetensors", "plain.safetensors"):
        output = drawn(worker, {"path": path, "scale": 0.2})
        assert output["image"] == expected["image"] and strengths(output) == strengths(expected) == [0.8], path
        assert not warnings_of(output["metadata"])
    weak = drawn(worker, {"path": "peft/adapter_model.safetensors", "scale": 0.05})
    assert strengths(weak) == [0.2] and weak["image"] != expected["image"]


def test_strengths_that_differ_by_layer_are_told_as_a_range(worker, base, folder):
    first, second = matrices(base, PLAIN[:1]), matrices(base, PLAIN[1:2], rank=8)
    write(folder / "ranks.safetensors", first | second, "lightning", alpha=4)
    (lora,) = drawn(worker, {"path": "ranks.safetensors", "scale": -1})["metadata"]["loras"]
    assert lora["strength_range"] == [-1.0, -0.5] and "strength" not in lora


def test_a_file_in_fp8_and_one_with_a_text_encoder_s_part_are_drawn(worker, base, folder, plain):
    weights = matrices(base, PLAIN, seed=12)
    in_fp8 = {layer: tuple(part.to(torch.float8_e4m3fn).float() for part in pair) for layer, pair in weights.items()}
    write(folder / "fp8.safetensors", weights, dtype=torch.float8_e4m3fn)
    path = write(folder / "rounded.safetensors", in_fp8)
    picture = drawn(worker, {"path": "rounded.safetensors"})["image"]
    assert drawn(worker, {"path": "fp8.safetensors"})["image"] == picture != plain
    text = {f"text_encoder.layers.0.q_proj.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    with safe_open(path, "pt") as file:
        save_file(text | {name: file.get_tensor(name) for name in file.keys()}, folder / "both.safetensors")  # noqa: SIM118
    output = drawn(worker, {"path": "rounded.safetensors", "scale": 0}, {"path": "both.safetensors"})
    assert output["image"] == picture and warnings_of(output["metadata"]) == [
        "loras[1] has a part for the text encoder (2 tensors), which was not applied"
    ]
    save_file(text, folder / "text.safetensors")
    assert refused(worker, {"path": "text.safetensors"}).startswith(
        "invalid_input: loras[0] has a part for the text encoder only (text_encoder.layers.0.q_proj.lora_"
    )


def test_a_lokr_is_drawn(worker, base, folder, plain):
    name, tensors = "diffusion_model.transformer_blocks.0.", {}
    for layer, (outputs, inputs) in {"attn.to_q": (128, 128), "img_mlp.net.2": (128, 512)}.items():
        tensors[f"{name}{layer}.lokr_w1"] = torch.full((4, 4), 0.1)
        tensors[f"{name}{layer}.lokr_w2"] = torch.full((outputs // 4, inputs // 4), 0.05)
        tensors[f"{name}{layer}.alpha"] = torch.tensor(1e10)  # of whole matrices, which have no rank
    save_file(tensors, folder / "lokr.safetensors")
    output = drawn(worker, {"path": "lokr.safetensors"})
    assert output["image"] != plain and strengths(output) == [1.0]
    tensors[f"{name}attn.to_q.lokr_w1"] = torch.ones(128, 128)
    save_file(tensors, folder / "absurd.safetensors")
    assert "transformer_blocks.0.attn.to_q is 128x128 there and 4096x4096 in the LoRA" in refused(
        worker, {"path": "absurd.safetensors"}
    )


def test_edits_and_several_pictures_take_loras(worker, base, folder, scene):
    from ..conftest import as_text

    write(folder / "c.safetensors", matrices(base, PLAIN, seed=9))
    lora = {"path": "c.safetensors"}
    edit = {"image": as_text(scene), "prompt": "make it green", "draw_size": "asked"}
    assert drawn(worker, lora, **edit)["image"] != run(worker, SMALL | edit)["output"]["image"]
    several = drawn(worker, lora, num_images=2)
    assert several["images"][1] == drawn(worker, lora, seed=6)["image"]


def test_a_url_s_lora_is_the_file_s_and_the_url_s_secrets_are_not_told(worker, base, folder, web):
    path = write(folder / "d.safetensors", matrices(base, PLAIN, seed=4))
    address = web(lambda handler: respond(handler, path.read_bytes(), ETag='"1"'))
    host = address.removeprefix("http://")
    output = drawn(worker, {"path": f"http://user:hush@{host}/d?signature=hush"})
    assert output["image"] == drawn(worker, {"path": "d.safetensors"})["image"]
    assert output["metadata"]["loras"] == [{"path": f"http://{host}/d", "scale": 1.0, "strength": 1.0}]


def test_the_hub_s_lora_is_the_file_s(worker, base, folder, web, monkeypatch, tmp_path):
    path = write(tmp_path / "repo/style.safetensors", matrices(base, PLAIN, seed=4))
    monkeypatch.setenv("HF_ENDPOINT", web(LocalHub({"Org/Style": tmp_path / "repo"})))
    (folder / "e.safetensors").write_bytes(path.read_bytes())
    assert drawn(worker, {"path": "Org/Style"})["image"] == drawn(worker, {"path": "e.safetensors"})["image"]


# Refusals


def test_a_lora_of_another_architecture_is_refused_by_its_layers(worker, folder, base):
    write(folder / "wide.safetensors", {layer: (torch.ones(4, 3072), torch.ones(3072, 4)) for layer in PLAIN})
    other = {"single_transformer_blocks.7.attn.to_q": (torch.ones(4, 128), torch.ones(128, 4))}
    write(folder / "flux.safetensors", other)
    error = refused(worker, {"path": "wide.safetensors"})
    assert error.startswith("invalid_input: loras[0] is not made for tiny-qwen-image/generate; 24 of 24 layers do not")
    assert "transformer_blocks.0.attn.add_k_proj is 128x128 there and 3072x3072 in the LoRA" in error
    good = write(folder / "good.safetensors", matrices(base, PLAIN))
    error = refused(worker, {"path": good.name}, {"path": "flux.safetensors"})
    assert error.endswith("; 1 of 1 layers do not match: single_transformer_blocks.7.attn.to_q is none of its layers")


@pytest.mark.parametrize("data", [pickle.dumps({"a": 1}), b"", b"PK\x03\x04", b"<html>"])
def test_a_pickle_is_refused(worker, folder, data):
    (folder / "pickle.safetensors").write_bytes(data)
    assert "loras[0] must be a safetensors file" in refused(worker, {"path": "pickle.safetensors"})


def test_five_gigabytes_and_an_endless_stream_are_refused(worker, cold_worker, web):
    address = web(lambda handler: respond(handler, b"x", Content_Length=str(5_000_000_000)))
    assert refused(worker, {"path": address}) == "invalid_input: loras[0] must be at most 2000 MB, not 5000.0 MB"
    start = (200).to_bytes(8, "little") + b"{"

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(start)
        while True:
            handler.wfile.write(bytes(1 << 16))

    small = cold_worker(QWEN_LORA_MB=3)
    assert refused(small, {"path": web(endless)}) == "invalid_input: loras[0] must be at most 3 MB, not more"


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/a", "https://10.0.0.1/a.safetensors", "http://localhost/a"])
def test_a_private_address_is_refused(worker, path):
    assert "leads to an address that may not be fetched" in refused(worker, {"path": path})


def test_a_redirect_to_a_private_address_is_refused(worker, web, monkeypatch):
    """The server counts as public here; where it sends on does not."""
    from runpod.serverless.utils import rp_ssrf

    there = "http://169.254.169.254/latest/meta-data/?token=hush"
    address = web(lambda handler: respond(handler, b"", 302, Location=there))
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS")
    public = rp_ssrf.is_safe_address
    monkeypatch.setattr(rp_ssrf, "is_safe_address", lambda ip: ip == "127.0.0.1" or public(ip))
    assert refused(worker, {"path": f"{address}/a.safetensors?signature=hush"}) == (
        "lora_fetch_failed: loras[0] leads to an address that may not be fetched: only public http(s) hosts are"
    )


def test_a_link_out_of_the_folder_is_not_followed(worker, folder, base, tmp_path):
    outside = write(tmp_path / "outside.safetensors", matrices(base, PLAIN))
    (folder / "link.safetensors").symlink_to(outside)
    error = refused(worker, {"path": "link.safetensors"})
    assert error == "invalid_input: loras[0] names no file in the endpoint's folders of LoRAs"


@pytest.mark.parametrize("path", ["/etc/passwd.safetensors", "../secret.safetensors", "missing.safetensors"])
def test_a_file_outside_the_folder_is_not_told_from_one_that_is_not_there(worker, folder, path):
    (folder.parent / "secret.safetensors").write_bytes(b"secret")
    assert refused(worker, {"path": path}) == "invalid_input: loras[0] names no file in the endpoint's folders of LoRAs"


def test_an_endpoint_may_take_none(cold_worker):
    worker = cold_worker(QWEN_LORA_MB=0)
    assert run(worker, SMALL | {"loras": [{"path": "Org/Name"}]})["error"] == (
        "invalid_input: loras are not taken by this endpoint: its QWEN_LORA_MB is 0"
    )


def test_a_model_that_cannot_be_had_needs_no_lora(cold_worker):
    """Nothing is fetched for a stand-in."""
    worker = cold_worker(QWEN_IMAGE_MODEL="Qwen/Qwen-Image")
    facts = run(worker, SMALL | {"loras": [{"path": "http://127.0.0.1:1/a"}]})["output"]["metadata"]
    assert facts["backend"] == "pil-fallback"


def test_a_lora_without_room_on_the_card_is_refused_before_anything_is_loaded(cold_worker, folder, base):
    worker = cold_worker(QWEN_LORA_ROOTS=str(folder))
    write(folder / "room.safetensors", matrices(base, PLAIN))
    plan = worker.pipelines.place("generate")
    tight = dataclasses.replace(plan, device="cuda")
    tight = dataclasses.replace(tight, limit_bytes=tight.peak_bytes(256, 256, tiled=True))
    place_by(worker, tight)
    error = run(worker, SMALL | {"loras": [{"path": "room.safetensors"}]})["error"]
    assert error.startswith("out_of_memory: 256x256 needs ") and not worker.pipelines.loaded


def test_a_lora_that_no_graph_takes_is_refused_where_blocks_that_are_not_compiled_have_no_room(
    cold_worker, folder, base
):
    """One of the modulation, where no table stands for that."""
    worker = cold_worker(QWEN_LORA_ROOTS=str(folder))
    write(folder / "eager.safetensors", matrices(base, [*PLAIN, "transformer_blocks.0.img_mod.1"]))
    plan = worker.pipelines.place("generate")
    assert not plan.table
    quantized = dataclasses.replace(plan, device="cuda", precision=Precision.FP8)
    with_room = dataclasses.replace(quantized.with_loras(10**8), compiled=True)
    place_by(worker, dataclasses.replace(quantized, limit_bytes=with_room.peak_bytes(1024, 1024, tiled=True)))
    job = SMALL | {"width": 1024, "height": 1024, "loras": [{"path": "eager.safetensors"}]}
    assert run(worker, job)["error"].startswith("out_of_memory: 1024x1024 needs ") and not worker.pipelines.loaded


# Stops


def test_a_stop_while_a_lora_is_fetched_ends_the_job_at_once(cold_worker, worker, web, gate, plain):
    dripping, over = gate(), gate()

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        while not over.wait(0.05):
            handler.wfile.write(b"\x00")
            dripping.set()

    patient = cold_worker(QWEN_LORA_SECONDS=600)
    asyncio.run(stopped(patient, SMALL | {"loras": [{"path": web(drip)}]}, dripping))
    assert run(worker, SMALL)["output"]["image"] == plain


def test_a_job_s_limit_counts_the_fetching_of_its_loras(worker, web, gate):
    over = gate()
    path = web(lambda handler: over.wait())
    job = {"id": "late", "input": SMALL | {"loras": [{"path": path}]}, "policy": {"executionTimeout": 5000}}
    error = asyncio.run(worker.answer(job))["error"]
    assert error == "deadline_exceeded: the job's 4.5 seconds ran out while its input was fetched and opened"


# The endpoint's own


def test_the_endpoint_s_own_loras_are_part_of_its_pictures(cold_worker, worker, base, folder, scene, capsys):
    from ..conftest import as_text

    path = write(folder / "own.safetensors", matrices(base, PLAIN, seed=7))
    own = [{"path": str(path), "scale": 0.6, "task": "generate"}]
    endpoint = cold_worker(QWEN_LORAS=json.dumps(own))
    capsys.readouterr()
    assert run(endpoint, SMALL)["output"]["image"] == drawn(worker, {"path": path.name, "scale": 0.6})["image"]
    edit = SMALL | {"image": as_text(scene), "prompt": "make it green", "draw_size": "asked"}
    assert run(endpoint, edit)["output"]["image"] == run(worker, edit)["output"]["image"]
    assert "; LoRAs: QWEN_LORAS[0] at 0.6" in capsys.readouterr().out
    models = run(endpoint, {"task": "health"})["output"]["models"]
    assert [model["loras"] for model in models] == [[{"setting": "QWEN_LORAS[0]", "scale": 0.6}], []]


def test_a_few_step_lora_among_the_endpoint_s_own_is_warned_of_in_the_log(tiny, capsys):
    from qwen_worker.lora.loras import Loras
    from qwen_worker.settings import Settings

    own = [{"path": str(tiny / "few-step/tiny-qwen-image-4steps.safetensors")}]
    (use,) = Loras(Settings(QWEN_LORAS=json.dumps(own))).open_for_endpoint("edit")
    assert use.file.layers and use.from_settings
    said = capsys.readouterr().out
    assert "QWEN_LORAS[0] is a few-step LoRA by its name" in said and "QWEN_EDIT_FAST_LORA and QWEN_PRESET=fast" in said


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "QWEN_LORAS[0] names no file"),
        (
            lambda folder: (folder / "own.safetensors").write_bytes(b"\x80\x04"),
            "QWEN_LORAS[0] must be a safetensors file",
        ),
        (
            lambda folder: write(folder / "own.safetensors", {PLAIN[0]: (torch.ones(1, 7), torch.ones(7, 1))}),
            "QWEN_LORAS[0] is not made for tiny-qwen-image/generate; 1 of 1 layers do not match",
        ),
        (
            lambda folder: write(
                folder / "own.safetensors", {PLAIN[0]: (torch.full((1, 128), torch.nan), torch.ones(128, 1))}
            ),
            f"QWEN_LORAS[0] holds infinite numbers, or none, in transformer.{PLAIN[0]}.lora_A.weight",
        ),
    ],
)
def test_an_own_lora_that_cannot_be_applied_keeps_the_model_from_loading(cold_worker, tmp_path, make, words):
    """Without it every picture would be another than the endpoint's owner asked for."""
    make(tmp_path)
    own = json.dumps([{"path": str(tmp_path / "own.safetensors")}])
    worker = cold_worker(QWEN_LORAS=own, QWEN_FALLBACK="forbid")
    assert f"model_unavailable: {words}" in run(worker, SMALL)["error"]


# In company


def test_jobs_of_other_loras_or_presets_share_no_call(cold_worker, folder, base):
    for name in "xy":
        write(folder / f"{name}.safetensors", matrices(base, PLAIN, seed=ord(name)))
    worker = cold_worker(QWEN_BATCH=4, QWEN_LORA_ROOTS=str(folder))
    run(worker, SMALL)
    x, y = ({"loras": [{"path": f"{name}.safetensors"}]} for name in "xy")
    half = {"loras": [{"path": "x.safetensors", "scale": 0.5}]}
    jobs = [x, x, y, half, {}, {"preset": "balanced"}, {"loras": []}]
    replies = together(worker, *(SMALL | {"seed": n} | more for n, more in enumerate(jobs)))
    assert [reply["metadata"]["batch"] for reply in replies] == [2, 2, 1, 1, 2, 1, 2]


def test_a_path_that_leads_elsewhere_by_now_shares_no_call(cold_worker, folder, base, monkeypatch):
    """Of the same size and age too, as within a tick of the clock."""
    from qwen_worker.lora import loras

    worker = cold_worker(QWEN_BATCH=4, QWEN_LORA_ROOTS=str(folder))
    path = folder / "moving.safetensors"
    run(worker, SMALL)
    opened, count = loras.Loras.open, iter(range(9))

    def moving(self, *args):
        other = write(folder / "other.safetensors", matrices(base, PLAIN, seed=next(count)))
        os.utime(other, (1, 1))
        other.rename(path)
        return opened(self, *args)

    monkeypatch.setattr(loras.Loras, "open", moving)
    replies = together(worker, *[SMALL | {"loras": [{"path": path.name}]}] * 2)
    assert [reply["metadata"]["batch"] for reply in replies] == [1, 1]
    assert replies[0]["image"] != replies[1]["image"]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "loras[0] cannot be read on the worker's disk"),
        (
            lambda path: path.write_bytes(path.read_bytes()),
            "loras[0] was written anew before it was read; send the job again",
        ),
    ],
    ids=["cut short", "written in place"],
)
def test_a_file_that_is_written_while_its_job_waits_fails_that_job_alone(
    worker, folder, base, plain, monkeypatch, spoil, error
):
    from qwen_worker.lora import loras

    path = write(folder / "spoilt.safetensors", matrices(base, PLAIN, seed=12))
    os.utime(path, (1, 1))
    opened = loras.Loras.open

    def spoilt(self, *args):
        file = opened(self, *args)
        spoil(path)
        return file

    monkeypatch.setattr(loras.Loras, "open", spoilt)
    assert refused(worker, {"path": path.name}).endswith(error)
    monkeypatch.undo()
    assert run(worker, SMALL)["output"]["image"] == plain


# Whatever is sent


possible = st.sampled_from(["Org/Name", "x.safetensors", "/x.safetensors", "https://10.0.0.1/x", "http://[", "a/b@c"])
paths = st.one_of(
    possible, text, nasty,
    st.text(string.ascii_letters + "/.@:-", max_size=40).map(lambda name: name + ".safetensors"),
)  # fmt: skip
entries = st.one_of(
    values,
    st.fixed_dictionaries({"path": paths}, optional={"scale": scalars, "weight": values}),
    st.dictionaries(st.one_of(st.sampled_from(["path", "scale"]), text), values, max_size=3),
)
# Mostly right, with something wrong further on.
plausible = st.lists(
    st.fixed_dictionaries({"path": possible}, optional={"scale": st.floats(-4, 4)}), min_size=1, max_size=4
)
hostile_loras = st.one_of(plausible, plausible, values, st.lists(entries, max_size=6))
hostile_presets = st.one_of(st.none(), st.none(), st.sampled_from(["quality", "balanced", "fast"]), values)


def test_whatever_loras_are_sent_are_drawn_or_refused_and_tell_nothing(worker, capsys, plain, sample):
    from runpod.serverless.modules.rp_job import run_job

    seen, count = [], sample(150, 400)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(hostile_loras, hostile_presets)
    def hostile(loras, preset):
        fields = SMALL | {"num_inference_steps": 1, "loras": loras, "preset": preset}
        body = asyncio.run(run_job(worker.answer, {"id": f"job-{len(seen)}", "input": fields}))
        posted = json.dumps(body, ensure_ascii=False).encode("utf-8").decode()
        code = body.get("error", "ok").split(":")[0]
        seen.append(code)
        assert code in ("ok", "invalid_input", "lora_fetch_failed"), body["error"]
        assert code in CODES or code == "ok"
        if code != "ok":
            assert not any(word in posted for word in FORBIDDEN if word not in repr(fields)) and len(posted) < 5000
        capsys.readouterr()

    hostile()
    assert seen.count("invalid_input") > 0.3 * count and "ok" in seen and "lora_fetch_failed" in seen
    assert run(worker, SMALL)["output"]["image"] == plain


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(worker, folder, plain, number):
    name = f"{PLAIN[0]}.lora_A.weight"
    tensors = {name: torch.full((1, 128), number), f"{PLAIN[0]}.lora_B.weight": torch.ones(128, 1)}
    save_file(tensors, folder / f"{number}.safetensors")
    assert refused(worker, {"path": f"{number}.safetensors"}) == (
        f"invalid_input: loras[0] holds infinite numbers, or none, in {name}"
    )
    assert run(worker, SMALL)["output"]["image"] == plain


def test_blocks_are_warmed_up_with_the_endpoint_s_own_loras_in_them(cold_worker, base, folder, monkeypatch):
    """They are part of every picture: without them the first job would compile the graph that it needs."""
    from qwen_worker.speed.compiled import CompiledBlocks

    layers = []

    def warm(blocks, *_):
        layers.append({type(module).__name__ for module in blocks.transformer.transformer_blocks.modules()})

    monkeypatch.setattr(CompiledBlocks, "warm", warm)
    path = write(folder / "warmed.safetensors", matrices(base, PLAIN, seed=7))
    own = json.dumps([{"path": str(path), "scale": 1}])
    loaded = cold_worker(QWEN_LORAS=own, QWEN_SPEEDUPS="compile", QWEN_FALLBACK="forbid").pipelines.load("generate")
    (warmed,) = layers
    left = {type(module).__name__ for module in loaded.pipe.transformer.transformer_blocks.modules()}
    assert "Linear" in left and warmed - left, (warmed, left)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of NaN to colours, before anybody can ask
def test_a_lora_that_leaves_no_numbers_is_the_job_s_own_fault(worker, base, folder):
    """Each of its numbers is finite, and the worker is as sound as before: no fresh one is asked for."""
    write(
        folder / "huge.safetensors", {LAYERS[0]: tuple(part * 1e20 for part in matrices(base, LAYERS[:1])[LAYERS[0]])}
    )
    for _ in range(2):
        body = run(worker, SMALL | {"loras": [{"path": "huge.safetensors"}]})
        assert body["error"].startswith("invalid_input: loras change the model so much that no picture came about")
        assert "stopPod" not in body
    assert run(worker, SMALL)["output"]["success"]
