"""Certificates for any kind of key, of chains of any kinds, which trustme does not make."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID

from support.certificates import Files

KINDS = {
    "RSA 2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA 4096": lambda: rsa.generate_private_key(65537, 4096),
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpoolP256r1": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "DSA 2048": lambda: dsa.generate_private_key(2048),
}

USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def key_usage(*uses: str) -> x509.KeyUsage:
    """Return the extension that allows these of USES and no other."""
    return x509.KeyUsage(**{use: use in uses for use in USES})


@cache
def key_of(kind: str) -> Any:
    """Return a key of this kind, always the same: those of RSA and DSA take a while to make."""
    return KINDS[kind]()


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and those that lead to its authority."""

    certificate: x509.Certificate
    key: Any
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> bytes:
        """Without the authority's own."""
        return b"".join(_pem(one) for one in (self.certificate, *self.issuers[:-1]))

    @property
    def key_pem(self) -> bytes:
        return bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    @property
    def authority(self) -> bytes:
        return _pem(self.issuers[-1] if self.issuers else self.certificate)

    def write(self, folder: Path) -> Files:
        """Write what a server needs into `folder`, over what is there."""
        files = Files(folder / "server.crt", folder / "server.key", folder / "ca.crt")
        files.key.write_bytes(self.key_pem)
        files.certificate.write_bytes(self.chain)
        files.authority.write_bytes(self.authority)
        return files

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a client needs that trusts the authority."""
        return grpc.ssl_channel_credentials(self.authority)


def authority(kind: str = "P-256") -> Issued:
    """Return a new authority."""
    return _issue(kind, None, "authority")


def issue(
    kind: str, issuer: Issued, *, is_authority: bool = False, extensions: Sequence[x509.ExtensionType] = ()
) -> Issued:
    """Return a certificate for this machine, or with `is_authority` one that issues others."""
    return _issue(kind, issuer, "intermediate" if is_authority else "leaf", extensions)


def _issue(
    kind: str, issuer: Issued | None, name: str, extensions: Sequence[x509.ExtensionType] = ()
) -> Issued:
    key = key_of(kind)
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    subject = _name(f"{name} {kind}")
    builder = (
        x509.CertificateBuilder(subject_name=subject, public_key=key.public_key())
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=name != "leaf", path_length=None), critical=True)
    )
    if name == "leaf":
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    signer = issuer.key if issuer else key
    hashes_itself = isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    certificate = builder.sign(signer, None if hashes_itself else hashes.SHA256())
    return Issued(certificate, key, (issuer.certificate, *issuer.issuers) if issuer else ())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
