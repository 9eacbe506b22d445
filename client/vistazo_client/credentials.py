"""How a client makes sure of the server, and the server of the client: TLS and tokens."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vistazo_client.errors import AuthenticationError

PathInput: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TLS:
    """What a client needs for TLS: files in PEM, read when the client is made.

        Client("vistazo.example:8001", tls=TLS(ca="ca.pem"))
        Client("vistazo.example:8001", tls=TLS(ca="ca.pem", certificate="me.pem", key="me.key"))  # mTLS

    A file that cannot be read or is not what it should be raises ValueError there.
    """

    ca: PathInput | None = None
    """Certificates of the authorities to trust; default, the public ones that grpc carries."""
    certificate: PathInput | None = None
    """The client's own certificate, with its chain, for servers that ask for one (mTLS)."""
    key: PathInput | None = None
    """The private key of `certificate`, without a passphrase."""
    server_name: str = ""
    """Name to look for in the server's certificate; default, the host of the address."""

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return CA, key and certificate in PEM. Raises ValueError, saying which file is wrong."""
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS: expected a certificate and its key, got only one of them")
        ca = None if self.ca is None else _read_pem(self.ca, "CA certificate")
        key = None if self.key is None else _read_pem(self.key, "key")
        certificate = None if self.certificate is None else _read_pem(self.certificate, "certificate")
        self._check()
        return ca, key, certificate

    def _check(self) -> None:
        """Raise ValueError where grpc would only fail later, and without a reason."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ca is not None:
                context.load_verify_locations(self.ca)
        except (ssl.SSLError, OSError) as error:
            raise ValueError(f"TLS: {self.ca}: expected CA certificates in PEM ({error})") from error
        try:
            if self.certificate is not None and self.key is not None:
                # The passphrase: without one, OpenSSL would ask for it on the terminal.
                context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise ValueError(
                f"TLS: {self.certificate} and {self.key}: expected a certificate in PEM and its key "
                f"without a passphrase ({error})"
            ) from error


def _read_pem(path: PathInput, what: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"TLS: {os.fspath(path)}: the {what} cannot be read ({error.strerror})") from error
    if b"-----BEGIN" not in content:
        raise ValueError(f"TLS: {os.fspath(path)}: expected a {what} in PEM")
    return content


def token_source(token: str, token_file: PathInput | None) -> Callable[[], str]:
    """Return what gives the token of each call; nothing where there is none.

    Raises ValueError when both are given, or the file has none now.
    """
    if token and token_file is not None:
        raise ValueError("expected a token or a token file, got both")
    if token_file is None:
        _check_token(token, "token")
        return lambda: token
    source = TokenFile(Path(token_file))
    try:
        source()
    except AuthenticationError as error:
        raise ValueError(str(error)) from error
    return source


class TokenFile:
    """A token in a file, read again when the file changes, so that tokens can be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # The file's version and the token in it, replaced as one: threads need no lock for it.
        self._known: tuple[tuple[int, int, int], str] | None = None

    def __call__(self) -> str:
        """Return the token. Raises AuthenticationError when the file has none."""
        try:
            stat = self._path.stat()
            version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            known = self._known
            if known is None or known[0] != version:
                known = self._known = (version, self._read())
        except OSError as error:
            raise AuthenticationError(
                f"token file {self._path}: cannot be read ({error.strerror})"
            ) from error
        return known[1]

    def _read(self) -> str:
        try:
            token = self._path.read_text(encoding="ascii").strip()
            _check_token(token, "token")
        except ValueError:
            # Not its words: they may quote most of a secret.
            raise AuthenticationError(
                f"token file {self._path}: expected one line of printable ASCII without spaces"
            ) from None
        if not token:
            raise AuthenticationError(f"token file {self._path}: expected a token, got an empty file")
        return token


def _check_token(token: str, what: str) -> None:
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{what}: expected printable ASCII without spaces")
