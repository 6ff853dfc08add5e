"""C2PA manifests: the project's own reader trusts them, a changed byte breaks them, and wrong keys end the start."""

import base64
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from qwen_worker.jobs.reply import posted_bytes
from qwen_worker.pictures.colour import PROFILE
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.marks import SOURCE_TYPES, Origin, mark_pictures
from qwen_worker.pictures.signing import signer_from_settings
from qwen_worker.settings import Misconfigured, Settings

from ..conftest import as_text, run
from ..support import profiles
from ..support.certificates import C2PA_SIGNING, authority, issue, key_pem, pem, root_pem, signing_pair
from ..support.control_plane import WorkerProcess, addresses
from .test_marks import by_exiftool, by_pillow

c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed")

FORMATS = ["png", "jpeg", "webp"]
SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 1, "seed": 1}
FACTS = {"backend": "qwen-image", "model": "Qwen/Qwen-Image", "revision": "abc", "worker_version": "1.2.3"}


@pytest.fixture(scope="module")
def variables():
    """The settings of an operator who signs."""
    chain, key = signing_pair()
    return {"QWEN_MARK": "c2pa", "QWEN_C2PA_CERTIFICATE": chain, "QWEN_C2PA_KEY": key_pem(key)}


@pytest.fixture(scope="module")
def signer(variables):
    return signer_from_settings(Settings(**variables))


def by_c2pa(file, output_format):
    """(how the reader judges the file, its manifest, all of the reader's words), the tests' root being trusted."""
    trust = {"trust_anchors": root_pem(), "trust_config": C2PA_SIGNING.dotted_string}
    trust["trust_config"] += "\n" + ExtendedKeyUsageOID.EMAIL_PROTECTION.dotted_string
    settings = {"version": 1, "trust": trust, "verify": {"verify_trust": True, "remote_manifest_fetch": False}}
    with c2pa.Context.from_dict(settings) as context:
        with c2pa.Reader(f"image/{output_format}", io.BytesIO(file), context=context) as reader:
            found = json.loads(reader.json())
    return found["validation_state"], found["manifests"][found["active_manifest"]], json.dumps(found)


def actions_of(manifest):
    (assertion,) = [one for one in manifest["assertions"] if one["label"] == "c2pa.actions.v2"]
    return assertion["data"]["actions"]


def signed(signer, picture, output_format, origin=Origin.GENERATED):
    picture = picture.copy()
    mark_pictures([picture], origin, Settings(QWEN_MARK="c2pa").QWEN_MARK)
    unsigned = encode_picture(picture, output_format)
    return unsigned, signer.signing(origin, FACTS)(unsigned, f"image/{output_format}")


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("kind", ["RGB", "grey", "P3"])
def test_a_signed_file_is_trusted_and_nothing_else_of_it_changes(signer, output_format, kind):
    picture = Image.effect_noise((320, 256), 60)
    if kind != "grey":
        picture = picture.convert("RGB")
    picture.info[PROFILE] = {"RGB": None, "grey": profiles.grey(), "P3": profiles.DISPLAY_P3}[kind]
    unsigned, file = signed(signer, picture, output_format)
    state, manifest, _ = by_c2pa(file, output_format)
    assert state == "Trusted"
    (generator,) = manifest["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("qwen-image-worker", "1.2.3")
    before, after = (Image.open(io.BytesIO(one)) for one in (unsigned, file))
    assert np.array_equal(np.asarray(before), np.asarray(after)) and before.mode == after.mode
    assert before.info.get(PROFILE) == after.info.get(PROFILE) and before.info.get("srgb") == after.info.get("srgb")
    assert by_pillow(file) == SOURCE_TYPES + Origin.GENERATED
    assert 2000 < len(file) - len(unsigned) < 5000


@pytest.mark.parametrize("output_format", FORMATS)
def test_exiftool_reads_the_manifest_too_and_the_xmp_beside_it(signer, output_format):
    _, file = signed(signer, Image.effect_noise((256, 256), 60), output_format, Origin.EDITED)
    found = by_exiftool(file, "-G1", "-XMP:all", "-CBOR:all", "-Orientation")
    assert found["XMP-iptcExt:DigitalSourceType"] == SOURCE_TYPES + Origin.EDITED
    if output_format != "webp":  # where exiftool 12 reads no manifest
        assert found["CBOR:ActionsDigitalSourceType"] == SOURCE_TYPES + Origin.EDITED
        assert "CBOR:Gathered_AssertionsUrl" not in found  # the signer vouches for all of it
    assert not any("Orientation" in name for name in found)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_byte_that_changes_breaks_the_manifest(signer, output_format):
    _, file = signed(signer, Image.effect_noise((256, 256), 60), output_format)
    assert by_c2pa(file, output_format)[0] == "Trusted"
    xmp = file.replace(b"digitalsourcetype/trained", b"digitalsourcetype/Trained", 1)
    pixels = bytearray(file)
    pixels[len(file) * 2 // 3] ^= 1
    for tampered in (xmp, bytes(pixels)):
        assert tampered != file and by_c2pa(tampered, output_format)[0] == "Invalid"


@pytest.mark.parametrize(
    ("origin", "steps"),
    [
        (Origin.GENERATED, ["c2pa.created"]),
        (Origin.GRADIENT, ["c2pa.created"]),
        (Origin.EDITED, ["c2pa.opened", "c2pa.edited"]),
        (Origin.FILTERED, ["c2pa.opened", "c2pa.edited"]),
    ],
)
def test_the_manifest_says_what_was_done_and_by_which_model(signer, origin, steps):
    facts = FACTS | ({} if origin in (Origin.GENERATED, Origin.EDITED) else {"backend": "pil-fallback"})
    file = signer.signing(origin, facts)(encode_picture(Image.new("RGB", (256, 256)), "png"), "image/png")
    state, manifest, _ = by_c2pa(file, "png")
    actions = actions_of(manifest)
    assert state == "Trusted" and [one["action"] for one in actions] == steps
    assert actions[-1]["digitalSourceType"] == SOURCE_TYPES + origin
    agent = {"name": "Qwen/Qwen-Image", "version": "abc"} if facts["backend"] == "qwen-image" else None
    assert actions[-1].get("softwareAgent") == agent
    assert "thumbnail" not in json.dumps(manifest)


def test_a_job_s_files_are_signed_and_tell_nothing_of_the_caller(cold_worker, variables, scene):
    worker = cold_worker(**variables)
    edit = SMALL | {"prompt": "make it green", "image": as_text(scene), "draw_size": "asked"}
    for more, origin in ((SMALL | {"num_images": 2}, Origin.GENERATED), (edit, Origin.EDITED)):
        for output_format in FORMATS:
            reply = run(worker, {**more, "output_format": output_format})["output"]
            for text in reply.get("images", [reply["image"]]):
                file = base64.b64decode(text)
                state, manifest, words = by_c2pa(file, output_format)
                assert state == "Trusted" and by_pillow(file) == SOURCE_TYPES + origin
                assert actions_of(manifest)[-1]["digitalSourceType"] == SOURCE_TYPES + origin
                assert actions_of(manifest)[-1]["softwareAgent"]["name"] == reply["metadata"]["model"]
                assert more["prompt"] not in words and more["prompt"].encode() not in file


def test_a_stand_in_s_manifest_says_so(cold_worker, variables, scene):
    worker = cold_worker(**variables, QWEN_FALLBACK="force")
    for more, origin in (({}, Origin.GRADIENT), ({"image": as_text(scene)}, Origin.FILTERED)):
        reply = run(worker, {**SMALL, **more})["output"]
        state, manifest, _ = by_c2pa(base64.b64decode(reply["image"]), reply["metadata"]["output_format"])
        assert state == "Trusted" and actions_of(manifest)[-1]["digitalSourceType"] == SOURCE_TYPES + origin


def test_the_limit_of_a_reply_counts_the_manifest(cold_worker, variables):
    plain = run(cold_worker(QWEN_FALLBACK="force"), SMALL | {"output_format": "png"})["output"]
    size = posted_bytes(plain)
    limits = {"QWEN_FALLBACK": "force", "QWEN_RESULT_LIMIT_MB": (size + 1000) / 1e6}
    assert "error" not in run(cold_worker(**limits), SMALL | {"output_format": "png"})
    worker = cold_worker(**variables, **limits)
    assert run(worker, SMALL | {"output_format": "png"})["error"].startswith("result_too_large")
    smaller = run(worker, SMALL)["output"]
    assert smaller["metadata"]["output_format"] == "webp"
    assert by_c2pa(base64.b64decode(smaller["image"]), "webp")[0] == "Trusted"
    assert posted_bytes(smaller) <= size + 1000


def test_side_threads_share_a_signer(signer):
    files = [encode_picture(Image.effect_noise((256, 256), 60), "png") for _ in range(16)]
    sign = signer.signing(Origin.GENERATED, FACTS)
    with ThreadPoolExecutor(8) as threads:
        signed_files = list(threads.map(lambda file: sign(file, "image/png"), files))
    assert {by_c2pa(file, "png")[0] for file in signed_files} == {"Trusted"}
    for before, after in zip(files, signed_files, strict=True):
        assert Image.open(io.BytesIO(before)).tobytes() == Image.open(io.BytesIO(after)).tobytes()


KEYS = {
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("kind", KEYS)
def test_each_kind_of_key_that_c2pa_allows_signs(kind):
    chain, key = signing_pair(KEYS[kind]())
    settings = Settings(QWEN_MARK="c2pa", QWEN_C2PA_CERTIFICATE=chain, QWEN_C2PA_KEY=key_pem(key))
    _, file = signed(signer_from_settings(settings), Image.new("RGB", (256, 256)), "png")
    assert by_c2pa(file, "png")[0] == "Trusted"


def test_a_certificate_for_c2pa_s_own_purpose_signs():
    chain, key = signing_pair(purpose=C2PA_SIGNING)
    settings = Settings(QWEN_MARK="c2pa", QWEN_C2PA_CERTIFICATE=chain, QWEN_C2PA_KEY=key_pem(key))
    _, file = signed(signer_from_settings(settings), Image.new("RGB", (256, 256)), "png")
    assert by_c2pa(file, "png")[0] == "Trusted"


@pytest.mark.parametrize("form", ["file", "escaped", "one line", "in one file", "OpenSSL's own"])
def test_certificate_and_key_come_as_texts_or_as_files_in_every_form(variables, tmp_path, form):
    chain, key = variables["QWEN_C2PA_CERTIFICATE"], variables["QWEN_C2PA_KEY"]
    if form == "OpenSSL's own":
        loaded = serialization.load_pem_private_key(key.encode(), None)
        key = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        key += key_pem(loaded, serialization.PrivateFormat.TraditionalOpenSSL)
    elif form == "escaped":
        chain, key = chain.replace("\n", "\\n"), key.replace("\n", "\\n")
    elif form == "one line":
        chain, key = chain.replace("\n", " "), key.replace("\n", " ")
    elif form == "in one file":
        (tmp_path / "both.pem").write_text(key + chain)
        chain = key = str(tmp_path / "both.pem")
    else:
        (tmp_path / "chain.pem").write_text(chain)
        (tmp_path / "key.pem").write_text(key)
        chain, key = str(tmp_path / "chain.pem"), f"{tmp_path}/key.pem\n"
    signer = signer_from_settings(Settings(QWEN_MARK="c2pa", QWEN_C2PA_CERTIFICATE=chain, QWEN_C2PA_KEY=key))
    _, file = signed(signer, Image.new("RGB", (256, 256)), "png")
    assert by_c2pa(file, "png")[0] == "Trusted"


def pair(*arguments, **options):
    chain, key = signing_pair(*arguments, **options)
    return chain, key_pem(key)


def root():
    key = ec.generate_private_key(ec.SECP256R1())
    return pem(issue("itself", key, "itself", key)), key_pem(key)


def locked(form):
    chain, key = signing_pair()
    return chain, key_pem(key, form, serialization.BestAvailableEncryption(b"x"))


def certificates():
    """The signing certificate, its issuer's, and the key."""
    chain, key = pair()
    end = "-----END CERTIFICATE-----\n"
    return *(f"{one}{end}" for one in chain.split(end)[:2]), key


def upside_down():
    leaf, issuing, key = certificates()
    return issuing + leaf, key


def without_its_issuer():
    leaf, _, key = certificates()
    return leaf + root_pem(), key


# By what is wrong: certificate and key, and the words that the operator reads.
WRONG = {
    "no certificate": (lambda: (None, pair()[1]), "QWEN_MARK is c2pa and QWEN_C2PA_CERTIFICATE is not set"),
    "no key": (lambda: (pair()[0], None), "QWEN_MARK is c2pa and QWEN_C2PA_KEY is not set"),
    "no file": (lambda: ("/secret/place/chain.pem", pair()[1]), "CERTIFICATE must be the text of a PEM file with a C"),
    "no key file": (lambda: (pair()[0], "/secret/place/key.pem"), "KEY must be the text of a PEM file with a PRIVATE"),
    "a folder": (lambda: (pair()[0], "/tmp"), "QWEN_C2PA_KEY must be the text of a PEM file with a PRIVATE KEY"),
    "not PEM": (lambda: (pair()[0], "c2VjcmV0" * 100), "QWEN_C2PA_KEY must be the text of a PEM file with a PRIVATE"),
    "swapped": (lambda: pair()[::-1], "QWEN_C2PA_CERTIFICATE must be the text of a PEM file with a CERTIFICATE"),
    "a garbled certificate": (lambda: (pair()[0].replace("M", "A"), pair()[1]), "CERTIFICATE holds a certificate that"),
    "a garbled key": (lambda: (pair()[0], pair()[1].replace("M", "A")), "KEY holds a private key that cannot be read"),
    "a passphrase": (lambda: locked(serialization.PrivateFormat.PKCS8), "QWEN_C2PA_KEY is encrypted"),
    "OpenSSL's passphrase": (lambda: locked(serialization.PrivateFormat.TraditionalOpenSSL), "KEY is encrypted"),
    "another's key": (lambda: (pair()[0], pair()[1]), "QWEN_C2PA_KEY is not the key of the first certificate in"),
    "expired": (lambda: pair(days=(-9, -1)), "QWEN_C2PA_CERTIFICATE holds a certificate that is not valid today, but"),
    "not yet valid": (lambda: pair(days=(1, 9)), "QWEN_C2PA_CERTIFICATE holds a certificate that is not valid today"),
    "upside down": (upside_down, "QWEN_C2PA_CERTIFICATE is no chain: the signing certificate comes first"),
    "without its issuer": (without_its_issuer, "QWEN_C2PA_CERTIFICATE is no chain: the signing certificate"),
    "for TLS": (lambda: pair(purpose=ExtendedKeyUsageOID.SERVER_AUTH), "CERTIFICATE cannot sign C2PA manifests"),
    "a root": (root, "QWEN_C2PA_CERTIFICATE cannot sign C2PA manifests"),
    "an authority's": (lambda: (pem(authority()[1]), key_pem(authority()[2])), "cannot sign C2PA manifests"),
    "another curve": (lambda: pair(ec.generate_private_key(ec.SECP256K1())), "QWEN_C2PA_KEY must be a key of P-256"),
    "a short key": (lambda: pair(rsa.generate_private_key(65537, 1024)), "QWEN_C2PA_KEY must be a key of P-256"),
    "another algorithm": (lambda: pair(ed448.Ed448PrivateKey.generate()), "QWEN_C2PA_KEY must be a key of P-256"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_sign_is_told_at_the_start_without_its_value(wrong):
    values, words = WRONG[wrong]
    chain, key = values()
    with pytest.raises(Misconfigured) as caught:
        signer_from_settings(Settings(QWEN_MARK="c2pa", QWEN_C2PA_CERTIFICATE=chain, QWEN_C2PA_KEY=key))
    said = str(caught.value)
    assert words in said and "place" not in said and "BEGIN" not in said
    assert not any(line in said for line in f"{chain} {key}".split() if len(line) > 20)


def test_a_package_that_is_missing_is_told_at_the_start_and_only_where_it_is_needed(variables, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(Misconfigured, match="QWEN_MARK is c2pa and needs c2pa-python, which is not installed"):
        signer_from_settings(Settings(**variables))
    assert signer_from_settings(Settings(**variables | {"QWEN_MARK": "xmp"})) is None


def test_a_worker_that_cannot_sign_ends_before_its_first_job(environment, web, tmp_path):
    chain, _ = signing_pair()
    place = tmp_path / "secret" / "key.pem"
    place.parent.mkdir()
    place.write_text(key_pem(ec.generate_private_key(ec.SECP256R1())))
    wrong = {"QWEN_MARK": "c2pa", "QWEN_C2PA_CERTIFICATE": chain, "QWEN_C2PA_KEY": str(place)}
    with WorkerProcess(environment(**wrong, **addresses("http://127.0.0.1:9"))) as worker:
        assert worker.end() == 1
    said = "".join(worker.lines)
    assert "A setting in the environment cannot be used. QWEN_C2PA_KEY is not the key of the first certificate" in said
    assert str(tmp_path) not in said and "PRIVATE KEY" not in said


def test_a_certificate_that_expires_while_the_worker_runs_costs_no_drawing(cold_worker, variables):
    worker = cold_worker(**variables, QWEN_FALLBACK="force")
    assert "output" in run(worker, SMALL)
    worker.signer.expires -= timedelta(days=31)
    body = run(worker, SMALL)
    assert body["error"] == "internal: the certificate that this endpoint signs pictures with has expired"
    assert body["stopPod"] and "inference" not in json.dumps(body)
