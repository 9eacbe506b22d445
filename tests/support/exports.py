"""Exported models, made once a session for all of its processes.

An export takes seconds, most of them torch's. What was asked for, byte by byte, is the key.
"""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from vistazo_export.exporter import ExportRequest, export_model


class Exports:
    """Puts exported models into repositories. `shared` is a folder that all processes of the tests see."""

    def __init__(self, shared: Path) -> None:
        self._shared = shared
        shared.mkdir(exist_ok=True)

    def put(self, request: ExportRequest) -> None:
        """Do what `export_model(request)` does to a repository that does not have the model."""
        made = self._shared / _key(request)
        with FileLock(made.with_suffix(".lock")):
            if not made.exists():
                unfinished = made.with_suffix(".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                export_model(replace(request, repository=unfinished))
                unfinished.rename(made)
        shutil.copytree(made / request.model_name, request.repository / request.model_name)


def _key(request: ExportRequest) -> str:
    digest = hashlib.sha256(repr(replace(request, repository=Path(), calibration=None)).encode())
    for file in sorted(request.calibration.iterdir()) if request.calibration else ():
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
