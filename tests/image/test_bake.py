"""The weights of an image: each distinct file fetched once, resumed where it broke off, verified, in small layers."""

import functools
import os
import re
import signal
import subprocess
import sys

import pytest

from qwen_bake import contents, listing
from qwen_bake.contents import GB, LAYER_BYTES, Blob, TooLarge, into_layers, settle
from qwen_worker.checkpoints import classes, search

from ..conftest import ROOT
from ..support.local_hub import LocalHub, sha256
from ..support.patience import run_to_its_end, wait_until

MB = 1_000_000
# Bytes of the shards of the released 20B checkpoints, as both saving libraries cut the models' tensors into 5 GB.
TRANSFORMER = [
    4989336064, 4984186368, 4946443264, 4984186368, 4946443776, 4946424832, 4908663808, 4984204800, 1170912896,
]  # fmt: skip
TEXT_ENCODER = [4968193024, 4991480832, 4932737024, 1691922432]
VAE = [253806246]


def sizes_of(**components):
    return {f"{name}-{number}": size for name, sizes in components.items() for number, size in enumerate(sizes)}


BOTH = sizes_of(generate=TRANSFORMER, edit=TRANSFORMER, text_encoder=TEXT_ENCODER, vae=VAE)


def test_the_shards_are_the_parameters_of_the_released_models():
    assert sum(TRANSFORMER) == 2 * classes.SIZE_20B["transformer"]
    assert sum(TEXT_ENCODER) == 2 * classes.SIZE_20B["text_encoder"]
    assert sum(VAE) == pytest.approx(2 * classes.SIZE_20B["vae"], rel=1e-3)


@pytest.mark.parametrize(("sizes", "count"), [
    (BOTH, 19),
    (sizes_of(generate=TRANSFORMER, text_encoder=TEXT_ENCODER, vae=VAE), 11),
    (sizes_of(edit=TRANSFORMER, generate=TRANSFORMER, one=TEXT_ENCODER, other=TEXT_ENCODER, vae=VAE), 22),
])  # fmt: skip
def test_the_20b_weights_are_laid_in_layers_of_at_most_8_gb(sizes, count):
    layers = into_layers(sizes)
    assert sorted(name for layer in layers for name in layer) == sorted(sizes)
    assert max(sum(sizes[name] for name in layer) for layer in layers) <= LAYER_BYTES == 8 * GB
    assert len(layers) == count <= layers_of_the_dockerfile()
    assert into_layers(dict(reversed(sizes.items()))) == layers  # so that a second build finds the layers of the first


def layers_of_the_dockerfile():
    text = (ROOT / "Dockerfile").read_text()
    fetched = [int(number) for number in re.findall(r"^RUN .*/bake/step fetch (\d+)$", text, re.MULTILINE)]
    assert fetched == list(range(len(fetched))), "each layer is fetched once, in order"
    assert f"ARG LAYERS={len(fetched)}\n" in text
    return len(fetched)


def test_what_no_layer_holds_is_refused_with_the_figures():
    with pytest.raises(TooLarge, match="big has 8.1 GB; a layer takes at most 8 GB"):
        into_layers({"big": 8_100_000_000})
    blobs = {name: Blob(name, 5 * GB, "Org/A", "c", name) for name in "abc"}
    with pytest.raises(TooLarge, match="need 3 layers of at most 8 GB; the Dockerfile has 2"):
        settle(False, [], blobs, 2)


def test_only_what_the_pipelines_read_is_laid_in():
    read = ["model_index.json", "vae/config.json", "tokenizer/merges.txt", "processor/chat_template.jinja"]
    left = ["README.md", "sample.png", "a/b/config.json", "vae/model.bin", "config.json", ".gitattributes"]
    assert [path for path in read + left if listing.is_read(path)] == read


class Bake:
    """The build's steps as the Dockerfile runs them: processes over one folder."""

    def __init__(self, folder, address, layers=3):
        self.root, self.contents, self.partial = folder / "image", folder / "contents.json", folder / "partial"
        self.layers, self.env = layers, {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder / "hub")}

    def command(self, step, *arguments):
        return [sys.executable, "-m", "qwen_bake", step, "--contents", str(self.contents), *map(str, arguments)]

    def fetching(self, layer):
        return self.command("fetch", "--root", self.root, "--partial", self.partial, layer)

    def run(self, command):
        done = run_to_its_end(command, env=self.env)
        return done.returncode, done.stdout + done.stderr

    def plan(self, *arguments):
        return self.run(self.command("plan", "--layers", self.layers, *arguments))

    def fetch(self):
        """Layers in order until one fails: the exit code of the last one, and what all said."""
        said = ""
        for layer in range(self.layers):
            code, text = self.run(self.fetching(layer))
            said += text
            if code:
                break
        return code, said

    def link(self):
        return self.run(self.command("link", "--root", self.root))

    def all(self, *models):
        for step in (lambda: self.plan(*models), self.fetch, self.link):
            code, text = step()
            assert code == 0, text


@pytest.fixture
def hub(web, tmp_path):
    """hub(**files by repo): a hub of such repositories below Org/, and the build that bakes from it."""

    def serve(gated=(), token=None, **repos):
        for name, files in repos.items():
            for path, data in {"model_index.json": b"{}", **files}.items():
                file = tmp_path / "hub" / name / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        served = LocalHub({f"Org/{name}": tmp_path / "hub" / name for name in repos}, gated, token)
        return served, Bake(tmp_path, web(served))

    return serve


@functools.cache
def weights(size):
    return os.urandom(size)


def disk_use(folder):
    """Bytes of what is there, a file with several names once."""
    seen = {file.stat().st_ino: file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()}
    return sum(seen.values())


def test_a_file_of_two_repositories_takes_its_size_once_on_disk_and_on_the_line(hub):
    shared = {"text_encoder/model.safetensors": weights(100 * MB), "vae/config.json": b'{"a": 1}'}
    served, bake = hub(A=shared, B=shared | {"transformer/model.safetensors": weights(1 * MB)})
    bake.all("Org/A", "Org/B")
    assert served.sent == {sha256(served.repos["Org/A"] / "text_encoder/model.safetensors"): 100 * MB,
                           sha256(served.repos["Org/B"] / "transformer/model.safetensors"): 1 * MB}  # fmt: skip
    assert 101 * MB <= disk_use(bake.root) < 101.1 * MB
    for name in ("A", "B"):
        snapshot = bake.root / f"models/models--Org--{name}/snapshots" / served.commit(f"Org/{name}")
        for path, file in served.files(f"Org/{name}").items():
            assert (snapshot / path).read_bytes() == file.read_bytes()


def test_a_download_that_is_killed_goes_on_where_it_ended(hub):
    served, bake = hub(A={"text_encoder/model.safetensors": weights(100 * MB)})
    assert bake.plan("Org/A")[0] == 0
    (digest,) = [one for one in contents.from_json(bake.contents.read_text()).blobs if len(one) == 64]
    served.pause = 0.05
    fetching = subprocess.Popen(
        bake.fetching(0), cwd=ROOT, env=bake.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    part = bake.partial / digest
    wait_until(lambda: part.exists() and part.stat().st_size >= 20 * MB, fetching.pid)
    fetching.send_signal(signal.SIGKILL)
    fetching.wait()
    had = part.stat().st_size
    assert 20 * MB <= had < 100 * MB
    served.pause = 0
    served.sent.clear()
    code, text = bake.fetch()
    assert code == 0, text
    assert served.sent == {digest: 100 * MB - had}
    assert (bake.root / "weights/00" / digest).read_bytes() == weights(100 * MB) and not part.exists()


def test_a_connection_that_breaks_off_is_gone_on_with_in_the_same_build(hub):
    served, bake = hub(A={"vae/model.safetensors": weights(40 * MB)})
    served.broken_off["model.safetensors"] = 35 * MB
    bake.all("Org/A")
    assert 40 * MB <= sum(served.sent.values()) < 51 * MB  # the client writes what has come by 10 MB


def test_bytes_that_are_not_the_hub_s_are_fetched_again(hub):
    served, bake = hub(A={"vae/model.safetensors": weights(2 * MB)})
    served.spoiled["model.safetensors"] = 1
    assert bake.plan("Org/A")[0] == 0
    code, text = bake.fetch()
    assert code == 0 and "Org/A/vae/model.safetensors: the hash must be" in text
    assert sum(served.sent.values()) == 4 * MB


def test_bytes_that_stay_wrong_fail_the_build_and_are_not_kept(hub, monkeypatch, tmp_path):
    from qwen_bake import fetch
    from qwen_worker.errors import LoadError

    served, bake = hub(A={"vae/model.safetensors": weights(2 * MB)})
    served.spoiled["model.safetensors"] = 99
    assert bake.plan("Org/A")[0] == 0
    (blob,) = [one for one in contents.from_json(bake.contents.read_text()).blobs.values() if one.size > MB]
    monkeypatch.setenv("HF_ENDPOINT", bake.env["HF_ENDPOINT"])
    folder = tmp_path / "layer"
    folder.mkdir()
    with pytest.raises(LoadError, match="the hash must be"):
        fetch.fetch(blob, folder, folder, None, pause=lambda seconds: None)
    assert list(folder.iterdir()) == []


def test_a_blob_that_was_damaged_since_is_fetched_again(hub):
    served, bake = hub(A={"vae/model.safetensors": weights(2 * MB), "vae/config.json": b"{}"})
    bake.all("Org/A")
    (blob,) = [one for one in (bake.root / "weights/00").iterdir() if one.stat().st_size == 2 * MB]
    with blob.open("r+b") as stream:
        stream.write(b"damage")
    served.sent.clear()
    assert bake.fetch()[0] == 0
    assert blob.read_bytes() == weights(2 * MB) and sum(served.sent.values()) == 2 * MB
    served.sent.clear()
    assert bake.fetch()[0] == 0 and served.sent == {}


def test_a_gated_model_needs_the_token_which_no_other_host_gets(hub):
    served, bake = hub(gated=["Org/A"], token="hf_t", A={"vae/model.safetensors": weights(2 * MB)})
    code, text = bake.plan("Org/A")
    assert code == 1 and "Org/A is gated on the hub: HF_TOKEN is missing or lacks access" in text
    bake.env["HF_TOKEN"] = "hf_t"
    bake.all("Org/A")
    assert sum(served.sent.values()) == 2 * MB and served.tokens_elsewhere == 0


def test_a_download_that_fails_ends_the_build_unless_told_otherwise(hub):
    served, bake = hub(A={"vae/model.safetensors": weights(1 * MB)}, B={"vae/model.safetensors": weights(2 * MB)})
    code, text = bake.plan("Org/None", "Org/A")
    assert code == 1 and "The weights cannot be laid into the image. Org/None does not exist" in text
    assert bake.plan("Org/A", "Org/B")[0] == 0
    lost = served.repos["Org/A"] / "vae/model.safetensors"
    lost.rename(lost.with_suffix(".lost"))
    code, text = bake.fetch()
    assert code == 1 and "Org/A/vae/model.safetensors does not exist on the hub" in text
    code, text = bake.link()
    assert code == 1 and "Org/A lacks " in text and "vae/model.safetensors" in text
    lost.with_suffix(".lost").rename(lost)
    assert bake.plan("--failure", "leave-out", "Org/None", "Org/A", "Org/B")[0] == 0
    lost.unlink()
    for code, text in (bake.fetch(), bake.link()):
        assert code == 0 and "WARNING: left out of the image: Org/A" in text
    assert [one.name for one in (bake.root / "models").iterdir()] == ["models--Org--B"]


def test_the_worker_finds_what_was_baked_by_name_and_by_revision(web, tmp_path, tiny):
    served = LocalHub({"Qwen/Qwen-Image": tiny / "generate", "Qwen/Qwen-Image-Edit": tiny / "edit"})
    bake = Bake(tmp_path, web(served))
    bake.all("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit@v2")
    for model, revision in (("Qwen/Qwen-Image", ""), ("Qwen/Qwen-Image-Edit", ""), ("Qwen/Qwen-Image-Edit", "@v2")):
        found = search.find(model + revision, [bake.root / "models"])
        assert (found.hub_id, found.revision) == (model, served.commit(model))
    moved = tmp_path / "moved"
    bake.root.rename(moved)  # as a COPY does
    assert search.find("Qwen/Qwen-Image", [moved / "models"]).parameters["transformer"] > 0


def test_the_download_step_needs_no_more_of_the_worker_than_the_dockerfile_gives_it(tmp_path):
    given = re.findall(r"^COPY (qwen_worker/\S+) /bake/qwen_worker/", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name in given:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "qwen_bake").symlink_to(ROOT / "qwen_bake")
    code = "import qwen_bake.fetch, qwen_bake.listing, sys; print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
