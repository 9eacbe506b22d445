"""A model version's folder, checked against its manifest where it has one."""

import hashlib
import os
from pathlib import Path
from typing import Final

from vistazo_server.artifact.manifest import ModelSpec, read_manifest, spec_without_manifest
from vistazo_server.errors import ModelLoadError

_HASH_CHUNK_BYTES: Final = 1 << 20


def verified_spec(folder: Path, name: str) -> ModelSpec:
    """Return the manifest of a version's folder once its files proved to be those that it describes.

    Without a manifest.json: what is known without one. `name` is the model's. Raises ModelLoadError.
    """
    path = folder / "model.onnx"
    manifest = folder / "manifest.json"
    if not os.path.lexists(manifest):
        return spec_without_manifest(name, model_sha256=_sha256(path))
    spec = read_manifest(manifest, name=name)
    _check(path, spec.model_sha256)
    for file in spec.external_files:
        _check(folder / file.path, file.sha256)
    return spec


def _check(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise ModelLoadError(
            f"{path} is not the file that its manifest describes: expected sha256 {expected[:12]}…, "
            f"got {found[:12]}…; export the model again"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing; export the model again") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
