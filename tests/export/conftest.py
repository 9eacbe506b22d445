"""What the export tests share: a repository exported once, and a mirror of published checkpoints."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from support.exports import Exports
from vistazo_export.cli import export_command, import_command, verify_command
from vistazo_export.exporter import ExportRequest

# Small, so that each costs seconds: the embedded one, ours, and one of torchvision's.
NETWORKS = {"lenet": "pretrained", "nin": "untrained", "squeezenet1_1": "untrained"}

MAX_BATCH_SIZE = 5


@pytest.fixture(autouse=True, scope="session")
def _operators_are_read_once() -> Iterator[None]:
    """Spare each export half a second: torch reads the operators that it knows anew, which are the same."""
    with pytest.MonkeyPatch.context() as patch:
        # Not torch's public side: where it has moved, each export takes its time.
        with suppress(ImportError, AttributeError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            once = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
            patch.setattr(ONNXRegistry, "from_torchlib", once)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, exports: Exports) -> Path:
    """A repository with all of NETWORKS. Not to be changed: take `repository` for that."""
    folder = tmp_path_factory.mktemp("exported") / "models"
    for architecture, weights in NETWORKS.items():
        exports.put(ExportRequest(architecture, folder, weights=weights, max_batch_size=MAX_BATCH_SIZE))
    return folder


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    """A repository of one's own, with lenet in it."""
    folder = tmp_path / "models"
    shutil.copytree(exported / "lenet", folder / "lenet")
    return folder


@pytest.fixture
def edit_manifest(repository: Path) -> Callable[[Callable[[dict], object]], None]:
    """Change lenet's manifest in `repository`."""
    path = repository / "lenet" / "1" / "manifest.json"

    def edit(change: Callable[[dict], object]) -> None:
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return edit


@pytest.fixture
def vistazo() -> Iterator[Callable[..., Result]]:
    """Run a command in this process: `vistazo("export", "lenet", "--models", folder)`."""
    group = click.Group("vistazo", commands=[export_command, import_command, verify_command])

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(group, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
