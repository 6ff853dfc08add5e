"""C2PA manifests: a file's signed statement of where its picture comes from, by the operator's certificate.

`c2pa-python` writes and signs them. A manifest says what `marks.py` says of the picture, and names the worker and the
model. It says nothing of the job: it holds neither the prompt, nor an input picture, nor a digest of one.
"""

import functools
import io
import itertools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..delivery_settings import Mark
from ..errors import JobError
from ..jobs.reply import DrawingFacts
from ..settings import Misconfigured, Settings
from .marks import SOURCE_TYPES, Origin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

Sign = Callable[[bytes, str], bytes]  # (file, content type) -> the file with its manifest
GENERATOR = "qwen-image-worker"
CERTIFICATE, KEY = "QWEN_C2PA_CERTIFICATE", "QWEN_C2PA_KEY"
MAX_PEM_BYTES = 100_000  # of a file; a chain of certificates has a tenth of it
# A field of a form, or an environment file, may have turned the line ends into spaces or into a backslash and an n.
PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
LINE_END = re.compile(r"\s|\\[nr]")
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}  # C2PA's algorithm for each
LEAST_RSA_BITS = 2048
# The library asks no server for anything, does not read again what it has signed, and puts no thumbnail into the file.
# The signer vouches for all that the manifest says ("created"), where the library would have it gathered from others.
LIBRARY_SETTINGS = {
    "version": 1,
    "verify": {"verify_after_sign": False, "ocsp_fetch": False, "remote_manifest_fetch": False},
    "builder": {"thumbnail": {"enabled": False}, "created_assertion_labels": ["c2pa.actions", "c2pa.ingredient"]},
}


def signer_from_settings(settings: Settings) -> "Signer | None":
    """What signs the operator's pictures, tried out; None where pictures are not signed.

    Raises `Misconfigured` naming the variable that cannot be used, without a part of its value.
    """
    if settings.QWEN_MARK is not Mark.C2PA:
        return None
    certificate, key = settings.QWEN_C2PA_CERTIFICATE, settings.QWEN_C2PA_KEY
    if certificate is None or key is None:
        raise Misconfigured(f"QWEN_MARK is c2pa and {CERTIFICATE if certificate is None else KEY} is not set")
    try:
        import c2pa  # pyright: ignore[reportMissingTypeStubs]  the package has none
    except ImportError:
        needed = "c2pa-python, which is not installed; requirements-c2pa.txt names its release"
        raise Misconfigured(f"QWEN_MARK is c2pa and needs {needed}") from None
    chain, private_key = read_chain(certificate.get_secret_value()), read_key(key.get_secret_value())
    if private_key.public_key() != chain[0].public_key():
        raise Misconfigured(f"{KEY} is not the key of the first certificate in {CERTIFICATE}")
    try:
        signer = Signer(chain, private_key)
        signer.try_out()
    except c2pa.C2paError as error:
        rule = "it must be no authority's, for digitalSignature, and for a purpose such as emailProtection"
        raise Misconfigured(f"{CERTIFICATE} cannot sign C2PA manifests ({error}): {rule}") from None
    return signer


def read_chain(value: str) -> "list[Certificate]":
    """The certificates, the signing one first.

    Raises `Misconfigured` unless all are valid today and each but the first has signed the one before it.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        chain = x509.load_pem_x509_certificates(read_pem(CERTIFICATE, value, "CERTIFICATE"))
        chain[0].public_key()  # is not read before
    except (ValueError, UnsupportedAlgorithm):
        raise Misconfigured(f"{CERTIFICATE} holds a certificate that cannot be read") from None
    for certificate in chain:
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= datetime.now(UTC) <= last:
            days = f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
            raise Misconfigured(f"{CERTIFICATE} holds a certificate that is not valid today, but {days}")
    for lower, upper in itertools.pairwise(chain):
        try:
            lower.verify_directly_issued_by(upper)
        except (ValueError, TypeError, InvalidSignature):
            order = "the signing certificate comes first, and after each certificate the one that it was issued by"
            raise Misconfigured(f"{CERTIFICATE} is no chain: {order}") from None
    return chain


def read_key(value: str) -> "PrivateKeyTypes":
    """Raises `Misconfigured` for what is no private key, or one that needs a passphrase."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = read_pem(KEY, value, "PRIVATE KEY")
    if b"ENCRYPTED" in pem:
        raise Misconfigured(f"{KEY} is encrypted, and the worker has no passphrase for it")
    try:
        return load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Misconfigured(f"{KEY} holds a private key that cannot be read") from None


def read_pem(name: str, value: str, kind: str) -> bytes:
    """The PEM texts of a kind in a variable's value, or in the file whose path it is, in lines of the usual length.

    Raises `Misconfigured` where there is none.
    """
    text = value
    if not PEM.search(text):
        try:
            with Path(value.strip()).open("rb") as stream:
                text = stream.read(MAX_PEM_BYTES).decode()
        except (OSError, ValueError):
            text = ""
    found = [(title, re.findall(".{1,64}", LINE_END.sub("", body))) for title, body in PEM.findall(text)]
    parts = [
        "\n".join((f"-----BEGIN {title}-----", *lines, f"-----END {title}-----\n"))
        for title, lines in found
        if title.endswith(kind)
    ]
    if not parts:
        raise Misconfigured(f"{name} must be the text of a PEM file with a {kind}, or the path of one that can be read")
    return "".join(parts).encode()


def algorithm_of(key: "PrivateKeyTypes") -> str:
    """C2PA's name of the algorithm that the key signs by. Raises `Misconfigured` for a key that C2PA does not take."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= LEAST_RSA_BITS:
        return "ps256"
    kinds = f"of P-256, P-384, P-521 or Ed25519, or RSA with at least {LEAST_RSA_BITS} bits"
    raise Misconfigured(f"{KEY} must be a key {kinds}: C2PA takes no other")


class Signer:
    """Signs files with one certificate. Threads may share it.

    `chain`: the signing certificate first. `key`: the private key of that one.
    """

    def __init__(self, chain: "list[Certificate]", key: "PrivateKeyTypes"):
        import c2pa  # pyright: ignore[reportMissingTypeStubs]
        from cryptography.hazmat.primitives import serialization

        algorithm, encoding = algorithm_of(key), serialization.Encoding.PEM
        chain_pem = b"".join(certificate.public_bytes(encoding) for certificate in chain)
        key_pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.expires = min(certificate.not_valid_after_utc for certificate in chain)
        self.library: Any = c2pa
        self.context = self.library.Context.from_dict(LIBRARY_SETTINGS)
        self.native = self.library.Signer.from_info(self.library.C2paSignerInfo(algorithm, chain_pem, key_pem, None))

    def try_out(self) -> None:
        """Sign a picture. Raises the library's `C2paError` for a certificate that C2PA does not allow to sign."""
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "PNG")
        self.sign(json.dumps({"claim_generator_info": [{"name": GENERATOR}]}), buffer.getvalue(), "image/png")

    def require_valid(self) -> None:
        """Refuse to draw what could not be signed any more.

        Raises `JobError` internal, which asks for a fresh worker: that one names the variable at its start.
        """
        if datetime.now(UTC) > self.expires:
            raise JobError(
                "internal", "the certificate that this endpoint signs pictures with has expired", refresh_worker=True
            )

    def signing(self, origin: Origin, facts: DrawingFacts) -> Sign:
        """What signs the files of a job's pictures."""
        return functools.partial(self.sign, json.dumps(manifest_of(origin, facts)))

    def sign(self, manifest: str, file: bytes, content_type: str) -> bytes:
        """The file with the manifest in it. Raises the library's `C2paError`."""
        signed = io.BytesIO()
        with self.library.Builder(manifest, self.context) as builder:
            builder.sign(self.native, content_type, io.BytesIO(file), signed)
        return signed.getvalue()


def manifest_of(origin: Origin, facts: DrawingFacts) -> dict[str, Any]:
    """The definition of a manifest, as the library takes it.

    An edit must name a picture that it began with. The manifest says no more of it than that there was one: its bytes
    or their digest would give the caller's picture away to whoever has the result.
    """
    step: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPES + origin}
    if facts["backend"] == "qwen-image":
        agent = {"name": facts["model"], "version": facts["revision"]}
        step["softwareAgent"] = {name: value for name, value in agent.items() if value}
    actions, ingredients = [step], []
    if origin in (Origin.EDITED, Origin.FILTERED):
        step["action"] = "c2pa.edited"
        actions = [{"action": "c2pa.opened", "parameters": {"ingredientIds": ["input"]}}, step]
        ingredients = [{"label": "input", "relationship": "parentOf"}]
    return {
        "claim_generator_info": [{"name": GENERATOR, "version": facts["worker_version"]}],
        "ingredients": ingredients,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
