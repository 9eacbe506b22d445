"""Who may call what: bearer tokens from a file, and the scope that each RPC asks for."""

import enum
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

from vistazo_server.errors import (
    PermissionDeniedError,
    StartupError,
    UnauthenticatedError,
)

log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 1.0
"""A changed file of tokens is in force this long after the change, at the first request that then comes."""

SHORTEST_TOKEN: Final = 16
"""Characters. Shorter ones can be guessed; `openssl rand -hex 32` makes a good one."""

AUTHORIZATION: Final = "authorization"

Metadata = Iterable[tuple[str, str | bytes]] | None
"""Of a call, as grpc hands it out."""


class Scope(enum.Enum):
    """What a token may be good for."""

    INFERENCE = "inference"
    MODEL_CONTROL = "model-control"


class Needs(enum.Enum):
    """What an RPC asks of its caller, when tokens are in use."""

    NOTHING = "nothing"
    """Health: probes and load balancers carry no tokens."""
    ANY_TOKEN = "any token"  # noqa: S105
    """What only tells: lists, metadata, statistics, reflection."""
    INFERENCE = Scope.INFERENCE
    MODEL_CONTROL = Scope.MODEL_CONTROL


NEEDS: Final[Mapping[str, Needs]] = MappingProxyType(
    {
        "/vistazo.v1.ClassificationService/Classify": Needs.INFERENCE,
        "/vistazo.v1.ClassificationService/ClassifyStream": Needs.INFERENCE,
        "/vistazo.v1.ClassificationService/ListModels": Needs.ANY_TOKEN,
        "/vistazo.v1.ClassificationService/GetModel": Needs.ANY_TOKEN,
        "/inference.GRPCInferenceService/ServerLive": Needs.NOTHING,
        "/inference.GRPCInferenceService/ServerReady": Needs.NOTHING,
        "/inference.GRPCInferenceService/ModelReady": Needs.NOTHING,
        "/inference.GRPCInferenceService/ServerMetadata": Needs.ANY_TOKEN,
        "/inference.GRPCInferenceService/ModelMetadata": Needs.ANY_TOKEN,
        "/inference.GRPCInferenceService/ModelConfig": Needs.ANY_TOKEN,
        "/inference.GRPCInferenceService/ModelStatistics": Needs.ANY_TOKEN,
        "/inference.GRPCInferenceService/RepositoryIndex": Needs.ANY_TOKEN,
        "/inference.GRPCInferenceService/ModelInfer": Needs.INFERENCE,
        "/inference.GRPCInferenceService/ModelStreamInfer": Needs.INFERENCE,
        "/inference.GRPCInferenceService/RepositoryModelLoad": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/RepositoryModelUnload": Needs.MODEL_CONTROL,
        # Named only to be answered UNIMPLEMENTED; what they would change is the operator's.
        "/inference.GRPCInferenceService/SystemSharedMemoryStatus": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/SystemSharedMemoryRegister": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/SystemSharedMemoryUnregister": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/CudaSharedMemoryStatus": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/CudaSharedMemoryRegister": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/CudaSharedMemoryUnregister": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/TraceSetting": Needs.MODEL_CONTROL,
        "/inference.GRPCInferenceService/LogSettings": Needs.MODEL_CONTROL,
        "/grpc.health.v1.Health/Check": Needs.NOTHING,
        "/grpc.health.v1.Health/List": Needs.NOTHING,
        "/grpc.health.v1.Health/Watch": Needs.NOTHING,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Needs.ANY_TOKEN,
    }
)
"""Every RPC of the server. One that is not here is refused to everybody who is asked for a token."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a token was given to, and what for."""

    name: str
    scopes: frozenset[Scope]


class Tokens:
    """The tokens of a file, read again when it changes.

    One token a line: NAME SCOPES TOKEN, with SCOPES a comma-separated list of `inference` and
    `model-control`; blank lines and those that begin with # are left out. A name may have several lines, and
    so an old token and a new one while callers change over. Only hashes of the tokens are kept.

    A file that cannot be read or used after a change leaves the old tokens in force, and is logged.
    `clock` returns seconds, monotonic.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._failure = ""
        try:
            self._content = path.read_bytes()
            self._callers = parse_tokens(self._content, path)
        except OSError as error:
            raise StartupError(f"the tokens {path} cannot be read: {error.strerror}") from None
        if not self._callers:
            raise StartupError(f"{path}: expected at least one line NAME SCOPES TOKEN, got none")
        self._check_at = clock() + CHECK_SECONDS

    def caller(self, token: str) -> Caller | None:
        """Return whose token it is, None when it is nobody's.

        Takes the same time for every wrong token: hashes are compared, each with each, in constant time.
        """
        self._reload()
        digest = _digest(token)
        found = None
        for known, caller in self._callers.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def _reload(self) -> None:
        now = self._clock()
        if now < self._check_at:
            return
        self._check_at = now + CHECK_SECONDS
        try:
            content = self._path.read_bytes()
            if content == self._content:
                return
            callers = parse_tokens(content, self._path)
        except (OSError, StartupError) as error:
            reason = f"it cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            if reason != self._failure:  # not every second
                log.error("tokens_unusable", path=str(self._path), reason=reason, meaning="the old ones stay")  # noqa: TRY400
                self._failure = reason
            return
        self._content, self._callers, self._failure = content, callers, ""
        log.info("tokens_reloaded", path=str(self._path), callers=sorted({c.name for c in callers.values()}))


def parse_tokens(content: bytes, path: Path) -> dict[bytes, Caller]:
    """Return the caller of each token's hash. Raises StartupError, which never quotes a token."""
    callers: dict[bytes, Caller] = {}
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise StartupError(f"{path}: expected ASCII, got other characters") from None
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(fields) != 3:
            raise StartupError(f"{where}: expected NAME SCOPES TOKEN, got {len(fields)} fields")
        name, scopes, token = fields
        if not re.fullmatch(r"[\w.@-]{1,64}", name):
            raise StartupError(
                f"{where}: expected a name of at most 64 letters, digits and _ . @ -, got another"
            )
        if len(token) < SHORTEST_TOKEN:
            raise StartupError(
                f"{where}: expected a token of at least {SHORTEST_TOKEN} characters, got {len(token)}"
            )
        digest = _digest(token)
        if digest in callers:
            raise StartupError(f"{where}: this token is on another line, too")
        callers[digest] = Caller(name, _scopes(scopes.split(","), where))
    return callers


def _scopes(names: Iterable[str], where: str) -> frozenset[Scope]:
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError:
        # What came is not quoted: a line in another order would have its token there.
        expected = " and ".join(scope.value for scope in Scope)
        raise StartupError(f"{where}: expected scopes out of {expected}, got something else") from None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def authorize(tokens: Tokens, method: str, metadata: Metadata) -> str:
    """Return the name of the caller that sent `metadata`, when it may call `method`; empty: anybody may.

    Raises UnauthenticatedError or PermissionDeniedError.
    """
    needs = NEEDS.get(method)
    if needs is Needs.NOTHING:
        return ""
    caller = tokens.caller(_bearer_token(metadata))
    if caller is None:
        raise UnauthenticatedError("authorization: the token is not known, or no longer")
    if needs is None:
        raise PermissionDeniedError(f"{method}: nobody may call it while tokens are in use")
    if needs is not Needs.ANY_TOKEN and needs.value not in caller.scopes:
        have = ", ".join(sorted(scope.value for scope in caller.scopes))
        raise PermissionDeniedError(
            f"the token of {caller.name} lacks the scope {needs.value.value}; it has {have}"
        )
    return caller.name


def _bearer_token(metadata: Metadata) -> str:
    sent = [value for key, value in metadata or () if key == AUTHORIZATION]
    if len(sent) != 1:
        got = f"it {len(sent)} times" if sent else "none"
        raise UnauthenticatedError(f"authorization: expected metadata `Bearer TOKEN` once, got {got}")
    scheme, _, token = str(sent[0]).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("authorization: expected `Bearer TOKEN`, got something else")
    return token.strip()
