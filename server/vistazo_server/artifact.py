"""A model version's folder, checked against its manifest."""

import hashlib
from pathlib import Path
from typing import Final

from vistazo_server.errors import ModelLoadError
from vistazo_server.manifest import ModelSpec, read_manifest

_HASH_CHUNK_BYTES: Final = 1 << 20


def verified_spec(folder: Path, name: str) -> ModelSpec:
    """Return the manifest of a version's folder once model.onnx proved to be the file that it describes.

    `name` is the model's. Raises ModelLoadError.
    """
    spec = read_manifest(folder / "manifest.json", name=name)
    path = folder / "model.onnx"
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing; export the model again") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    if digest.hexdigest() != spec.model_sha256:
        raise ModelLoadError(
            f"{path} is not the file that its manifest describes: expected sha256 {spec.model_sha256[:12]}…, "
            f"got {digest.hexdigest()[:12]}…; export the model again"
        )
    return spec
