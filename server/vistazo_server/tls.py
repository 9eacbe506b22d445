"""Certificates: TLS for the gRPC port, from files that are read again when they change.

Every handshake looks at the files, so that a rotation needs no restart and no signal; connections that are
open keep the certificate that they began with. A new file that cannot be used (half written, or a key that
does not belong to its certificate) is logged once and leaves the old ones in force.
"""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from vistazo_server.errors import StartupError, one_line

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Contents:
    """The bytes of the files, in PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """The server's certificate chain and private key and, for mTLS, whose clients it trusts.

    All are PEM files: `certificate` with the leaf first, `key` without a password, `client_ca` with one or
    several authorities; with it, a client without a certificate of theirs is turned away in the handshake.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._lock = threading.Lock()  # grpc asks from several threads
        self._current: _Contents | None = None
        self._failure = ""

    def credentials(self) -> grpc.ServerCredentials:
        """Return what the gRPC port is opened with. Raises StartupError when the files cannot be used."""
        try:
            self._current = self._read()
        except _UnusableError as error:
            raise StartupError(f"TLS: {error}") from None
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._current),
            self._changed,  # type: ignore[arg-type]  # grpc takes None for no change; its stubs do not know
            require_client_authentication=self._client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificates when they are new, None to go on with the old: grpc asks in a handshake."""
        with self._lock:
            try:
                contents = self._read()
            except _UnusableError as error:
                if str(error) != self._failure:  # not at each handshake
                    self._failure = str(error)
                    log.error("certificates_unusable", reason=self._failure, meaning="the old ones stay")  # noqa: TRY400
                return None
            self._failure = ""
            if contents == self._current:
                return None
            self._current = contents
            log.info("certificates_reloaded", certificate=str(self._certificate))
            return _configuration(contents)

    def _read(self) -> _Contents:
        """Return the files' contents, which belong together. Raises _UnusableError."""
        contents = self._bytes()
        if contents == self._current:
            return contents
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without a password given, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = one_line(error, characters=200)
            raise _UnusableError(
                f"{self._certificate} and {self._key}: expected a PEM certificate and its private key "
                f"without a password, got: {reason}"
            ) from None
        if contents.client_ca is not None:
            try:
                context.load_verify_locations(cadata=contents.client_ca.decode("ascii"))
            except (OSError, ValueError) as error:
                reason = one_line(error, characters=200)
                raise _UnusableError(
                    f"{self._client_ca}: expected certificates of authorities in PEM, got: {reason}"
                ) from None
        if self._bytes() != contents:
            raise _UnusableError(f"{self._certificate}: it is being written")
        return contents

    def _bytes(self) -> _Contents:
        return _Contents(
            certificate=_read_file(self._certificate),
            key=_read_file(self._key),
            client_ca=None if self._client_ca is None else _read_file(self._client_ca),
        )


class _UnusableError(Exception):
    """The files cannot be used; the message says which and why, and holds nothing secret."""


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _UnusableError(f"{path} cannot be read: {error.strerror}") from None


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.certificate)], root_certificates=contents.client_ca
    )
