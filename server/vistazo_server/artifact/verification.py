"""A model version's folder, checked against its manifest where it has one."""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from vistazo_server.artifact.manifest import ModelSpec, read_manifest, spec_without_manifest
from vistazo_server.artifact.model_formats import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    is_onnx,
    listed,
    other_format,
    visible_names,
)
from vistazo_server.artifact.text_files import FileUnreadableError, read_labels
from vistazo_server.artifact.triton_config import (
    PLATFORM,
    ConfigError,
    TritonConfig,
    is_inside,
    read_triton_config,
)
from vistazo_server.errors import ModelLoadError

log = structlog.get_logger(__name__)

_HASH_CHUNK_BYTES: Final = 1 << 20

# Larger ones are asked for by mistake, and each batch size is tried before a model serves.
_MOST_BATCH_SIZE: Final = 1024

_MOST_LABEL_FILES: Final = 16


def verified_spec(folder: Path, name: str, *, needs_manifest: bool = False) -> ModelSpec:
    """Return the manifest of a version's folder once its files proved to be those that it describes.

    Without a manifest.json: what is known without one, and what a config.pbtxt beside the versions says of
    file, batch and labels. `name` is the model's. `needs_manifest`: it had one when it was looked at, so what
    has none now is being changed. Raises ModelLoadError.
    """
    manifest = folder / MANIFEST_FILE
    if not needs_manifest and not os.path.lexists(manifest):
        return _spec_without_manifest(folder, name)
    spec = read_manifest(manifest, name=name)
    _check(folder / MODEL_FILE, spec.model_sha256)
    for file in spec.external_files:
        _check(folder / file.path, file.sha256)
    return spec


def _spec_without_manifest(folder: Path, name: str) -> ModelSpec:
    path = folder.parent / CONFIG_FILE
    trouble = ""
    try:
        config = read_triton_config(path)
    except ConfigError as error:
        config, trouble = TritonConfig(), str(error)
    if config.runs_elsewhere:
        raise ModelLoadError(
            f"{path} says {config.runs_elsewhere}, which this server does not run: expected platform "
            f"{PLATFORM!r}; serve the model as ONNX, or correct that line"
        )
    file = config.model_file or MODEL_FILE
    if not is_inside(file):
        raise ModelLoadError(
            f"{path}: default_model_filename: expected a path inside the version's folder, got {file[:100]!r}"
        )
    if (folder / file / MODEL_FILE).is_file():
        # Triton's way for a graph with files of weights: model.onnx is a folder that holds them all.
        file = f"{file}/{MODEL_FILE}"
    if not (folder / file).exists():
        raise ModelLoadError(
            _why_missing(folder, file, named_by=path if config.model_file else None)
            + (f"; {trouble}" if trouble else "")
        )
    digest = _sha256(folder / file)
    if trouble:
        log.warning("triton_config_unused", model=name, reason=trouble, meaning="served without what it says")
    return spec_without_manifest(
        name,
        model_sha256=digest,
        model_file=file,
        max_batch_size=_max_batch_size(config, path),
        output_labels=_output_labels(config, folder),
    )


def _max_batch_size(config: TritonConfig, path: Path) -> int:
    wanted = config.max_batch_size
    taken = min(max(wanted, 0), _MOST_BATCH_SIZE)
    if wanted != taken:
        reason = f"max_batch_size: expected 0 to {_MOST_BATCH_SIZE}, got {wanted}"
        log.warning("max_batch_size_changed", path=str(path), reason=reason, taken=taken)
    return taken


def _output_labels(config: TritonConfig, folder: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the labels of each output that has some; what cannot be read is told and left out."""
    found = []
    if len(config.label_files) > _MOST_LABEL_FILES:
        reason = f"more than {_MOST_LABEL_FILES} outputs have labels; those of the others are left out"
        log.warning("labels_unused", path=str(folder.parent / CONFIG_FILE), reason=reason)
    for output, file in config.label_files[:_MOST_LABEL_FILES]:
        if not is_inside(file):
            reason = f"label_filename: expected a path inside the model's folder, got {file[:100]!r}"
            log.warning("labels_unused", output=output, reason=reason)
            continue
        try:
            found.append((output, read_labels(folder.parent / file)))
        except FileNotFoundError:
            log.warning("labels_unused", output=output, reason=f"{folder.parent / file} is missing")
        except FileUnreadableError as error:
            log.warning("labels_unused", output=output, reason=str(error))
    return tuple(found)


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
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            # Opening a pipe would wait for whoever writes into it.
            raise ModelLoadError(f"{path} cannot be read: it is no file")
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        if path.name != MODEL_FILE:
            raise ModelLoadError(f"{path} is missing; export the model again") from None
        raise ModelLoadError(_why_missing(path.parent, MODEL_FILE, named_by=None)) from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _why_missing(folder: Path, file: str, *, named_by: Path | None) -> str:
    """Return why a version's graph is not there, and what to do, in one line."""
    path = folder / file
    if path.is_symlink():
        return f"{path} is a link to {str(path.readlink())!r}, which is not there"
    try:
        names = visible_names(folder)
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"
    missing = f"{path} is missing" + (f", the default_model_filename of {named_by}" if named_by else "")
    if MANIFEST_FILE in names and not any(map(is_onnx, names)):
        return f"{missing}; export the model again"
    if not names:
        return f"{missing}: the folder is empty; export the model again, or copy its files there"
    return f"{missing}; the folder has {_instead(folder, names, is_named=named_by is not None)}"


def _instead(folder: Path, names: Sequence[str], *, is_named: bool) -> str:
    """Return what a version's folder has in place of its graph, and what to do."""
    graphs = [name for name in names if is_onnx(name)]
    if graphs and is_named:
        return listed(graphs)
    if graphs:
        one = "it" if len(graphs) == 1 else "the one to serve"
        named = f" or name it in {folder.parent / CONFIG_FILE} as default_model_filename"
        # A manifest describes model.onnx, and nothing else is asked then.
        return f"{listed(graphs)}: rename {one} to {MODEL_FILE}" + (
            "" if MANIFEST_FILE in names else f",{named}"
        )
    for name in names:
        if other := other_format(name):
            return f"{listed([name])} ({other[0]}), which is not served: {other[1]}"
    return f"{listed(names)}: copy the graph there, or remove the folder"
