"""A certification authority of the tests, and signing certificates by it, right and wrong."""

import functools
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

C2PA_SIGNING = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")  # the purpose that C2PA's own programme asks for


def name(common):
    parts = ((NameOID.ORGANIZATION_NAME, "Tests"), (NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts])


def issue(common, key, issuer, issuer_key, purpose=None, days=(-1, 30)):
    """A certificate; without a purpose it is an authority's. `days`: from now, between which it is valid."""
    now, is_authority = datetime.now(UTC), purpose is None
    usages = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    usages |= {"digital_signature": not is_authority, "key_cert_sign": is_authority, "crl_sign": is_authority}
    builder = (
        x509.CertificateBuilder(name(issuer), name(common), key.public_key(), x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usages), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if purpose:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(issuer_key, None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


@functools.cache
def authority():
    """The keys and certificates of a root and of the one below it that issues."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    return issue("root", root_key, "root", root_key), issue("issuing", key, "root", root_key), key


def signing_pair(key=None, purpose=ExtendedKeyUsageOID.EMAIL_PROTECTION, days=(-1, 30)):
    """(PEM of a signing certificate and its issuer's, its private key)."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    _, issuing, issuing_key = authority()
    return pem(issue("signing", key, "issuing", issuing_key, purpose, days)) + pem(issuing), key


def root_pem():
    return pem(authority()[0])


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key, form=serialization.PrivateFormat.PKCS8, encryption=None):
    return key.private_bytes(serialization.Encoding.PEM, form, encryption or serialization.NoEncryption()).decode()
