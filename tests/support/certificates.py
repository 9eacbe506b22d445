"""Authorities and certificates for tests, written where a server reads them."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Files:
    """Where a server's certificate, its key and the authority are."""

    certificate: Path
    key: Path
    authority: Path

    def flags(self, *, mtls: bool = False) -> list[str]:
        """Return the options of `vistazo serve` that use them."""
        flags = ["--tls-certificate", str(self.certificate), "--tls-key", str(self.key)]
        return [*flags, "--tls-client-ca", str(self.authority)] if mtls else flags

    def settings(self, *, mtls: bool = False) -> dict[str, Path]:
        """Return the settings that use them."""
        settings = {"tls_certificate": self.certificate, "tls_key": self.key}
        return settings | {"tls_client_ca": self.authority} if mtls else settings


class Authority:
    """An authority of its own, unknown to all others."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    @property
    def pem(self) -> bytes:
        return self._ca.cert_pem.bytes()

    def write(self, folder: Path, *, expired: bool = False, names: tuple[str, ...] = NAMES) -> Files:
        """Write a server certificate for this machine into `folder`, over what is there."""
        leaf = self.issue(expired=expired, names=names)
        files = Files(folder / "server.crt", folder / "server.key", folder / "ca.crt")
        files.authority.write_bytes(self.pem)
        files.key.write_bytes(leaf.private_key_pem.bytes())
        files.certificate.write_bytes(chain(leaf))
        return files

    def write_client(self, folder: Path) -> tuple[Path, Path]:
        """Write a client's certificate and its key into `folder`."""
        leaf = self._ca.issue_cert("client@vistazo.test")
        certificate, key = folder / "client.crt", folder / "client.key"
        certificate.write_bytes(chain(leaf))
        key.write_bytes(leaf.private_key_pem.bytes())
        return certificate, key

    def issue(
        self, *, expired: bool = False, ends: dt.datetime | None = None, names: tuple[str, ...] = NAMES
    ) -> trustme.LeafCert:
        """Return a certificate for this machine."""
        day = dt.timedelta(days=1)
        if expired:
            ends = dt.datetime.now(dt.UTC) - day
        if ends is None:
            return self._ca.issue_cert(*names)
        return self._ca.issue_cert(*names, not_before=ends - day, not_after=ends)

    def credentials(self, client: trustme.LeafCert | None = None) -> grpc.ChannelCredentials:
        """Return what a client needs that trusts this authority and, for mTLS, shows `client`."""
        if client is None:
            return grpc.ssl_channel_credentials(self.pem)
        return grpc.ssl_channel_credentials(self.pem, client.private_key_pem.bytes(), chain(client))


def chain(leaf: trustme.LeafCert) -> bytes:
    """Return a certificate and those that lead to its authority, in PEM."""
    return b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
