"""Fetching published checkpoints into torch.hub's cache, failing fast.

torch.hub's own download waits for ever on a host that does not answer. This one gives up in time and
otherwise keeps torch.hub's rules: the same folder under TORCH_HOME, the same file names, the same
check of the SHA-256 prefix in the name; so a file that either of them fetched serves both.
"""

import hashlib
import http.client
import queue
import re
import threading
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast
from urllib.parse import urlsplit

from vistazo_export.errors import WeightsError, WeightsUnavailableError
from vistazo_export.progress import SILENT, Progress

OPEN_SECONDS = 8.0
"""Longest wait for a host's first answer: name lookup, every address, TLS and redirects together."""

STALL_SECONDS = 10.0
"""Longest silence in the middle of a download."""

CHUNK_BYTES = 1 << 20

# torchvision's convention, as in resnet18-f37072fd.pth. Fewer digits would check next to nothing.
HASH_IN_NAME = re.compile(r"-([a-f0-9]{8,64})\.")


@dataclass(frozen=True)
class CachedFile:
    """A checkpoint in the cache whose hash has been checked."""

    path: Path
    sha256: str
    """Lower-case hex digest of the whole file."""


def sha256_of(path: Path) -> str:
    """Return the lower-case hex SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_checkpoint(url: str, *, mirror: str | None = None, progress: Progress = SILENT) -> CachedFile:
    """Return the checkpoint published at `url`, from torch.hub's cache or else downloaded into it.

    `mirror` is the URL of a folder that holds files of the same names; the hash check is the same.
    Raises WeightsUnavailableError where the host does not answer or lacks the file, and WeightsError
    where what it sends is not the published file; then the cache is left as it was.
    """
    import torch  # noqa: PLC0415 - heavy; only a download needs it

    name = Path(urlsplit(url).path).name
    match = HASH_IN_NAME.search(name)
    if match is None:
        raise WeightsError(f"cannot check {url}: its file name has no SHA-256 prefix")
    target = Path(torch.hub.get_dir()).expanduser() / "checkpoints" / name
    if target.is_file():
        digest = sha256_of(target)
        if digest.startswith(match[1]):
            return CachedFile(target, digest)
        # Its own name says that it is damaged; a good download replaces it.
    source = url if mirror is None else f"{mirror.rstrip('/')}/{name}"
    progress.stage("downloading")
    return _download(source, target, match[1], progress)


def _download(url: str, target: Path, hash_prefix: str, progress: Progress) -> CachedFile:
    """Download `url` to `target`, which appears only once its hash is right."""
    response = _open(url)
    # A name of its own for each process; the cache's readers never see a part of a file.
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        with response:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                digest = _copy(response, file, url, progress)
        if not digest.startswith(hash_prefix):
            raise WeightsError(
                f"{url} is not the published file: its SHA-256 begins {digest[: len(hash_prefix)]}, "
                f"not {hash_prefix}; nothing was kept"
            )
        partial.replace(target)
    except OSError as error:
        raise WeightsUnavailableError(f"cannot write the weights cache {target.parent}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return CachedFile(target, digest)


def _copy(response: http.client.HTTPResponse, file: IO[bytes], url: str, progress: Progress) -> str:
    """Copy the response's body to `file` and return its SHA-256."""
    length = response.headers.get("Content-Length")
    total = int(length) if length is not None and length.isdigit() else None
    done = 0
    sha256 = hashlib.sha256()
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise WeightsUnavailableError(f"download of {url} broke off: {_reason(error)}") from error
        if not chunk:
            break
        file.write(chunk)
        sha256.update(chunk)
        done += len(chunk)
        progress.downloaded(done, total)
    if total is not None and done < total:
        raise WeightsUnavailableError(f"download of {url} broke off after {done} of {total} bytes")
    return sha256.hexdigest()


def _open(url: str) -> http.client.HTTPResponse:
    """Return the open response to a GET of `url`, or raise WeightsUnavailableError in OPEN_SECONDS."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise WeightsUnavailableError(f"cannot download {url}: not an http:// or https:// address")

    answers: queue.SimpleQueue[http.client.HTTPResponse | Exception] = queue.SimpleQueue()
    opener = urllib.request.build_opener()
    opener.addheaders = [("User-Agent", "vistazo")]

    def attempt() -> None:
        try:
            answers.put(cast("http.client.HTTPResponse", opener.open(url, timeout=STALL_SECONDS)))
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put(error)

    # A socket timeout bounds neither the name lookup nor several dead addresses one after another.
    # A thread that may be left behind bounds all of it.
    threading.Thread(target=attempt, name="open-checkpoint", daemon=True).start()
    try:
        answer = answers.get(timeout=OPEN_SECONDS)
    except queue.Empty:
        raise WeightsUnavailableError(
            f"cannot download {url}: no answer from {parts.hostname} within {OPEN_SECONDS:g} s"
        ) from None
    if isinstance(answer, Exception):
        raise WeightsUnavailableError(f"cannot download {url}: {_reason(answer)}") from answer
    return answer


def _reason(error: Exception) -> str:
    """Return the innermost reason of a network error, on one line."""
    reason = getattr(error, "reason", None)
    if isinstance(error, urllib.request.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(reason, OSError):
        reason = reason.strerror or reason
    return " ".join(str(reason or error).split()) or type(error).__name__
