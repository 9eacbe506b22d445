"""A real server beside the test, and `vistazo evaluate` against it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from support.colours import paint
from support.threaded import served
from support.tiny import tiny_manifest, tiny_model, write_model
from vistazo_client.cli import main
from vistazo_proto import manifest_pb2


class Ran:
    """What a command line gave."""

    def __init__(self, result) -> None:
        self.status = result.exit_code
        self.stdout = result.stdout
        self.stderr = result.stderr
        self.output = result.output

    @property
    def json(self):
        assert self.status in (0, 1), self.output
        return json.loads(self.stdout)


@pytest.fixture
def evaluate() -> Callable[..., Ran]:
    """Run `vistazo evaluate` with these arguments."""

    def run(*arguments, env=None) -> Ran:
        return Ran(CliRunner().invoke(main, ["evaluate", *map(str, arguments)], env=env))

    return run


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory) -> Iterator[str]:
    """A server with five models of three colours: which is the brightest.

    "tiny"; "soft" says the same less surely; "wrong" has its labels in another order in version 2; "tags" is
    multi-label; "random" says that its weights are. Not to be changed.
    """
    folder = tmp_path_factory.mktemp("tiny") / "models"
    write_model(folder)
    soft = tiny_model(divisor=100)
    write_model(folder, "soft", model=soft, manifest=tiny_manifest("soft", soft.SerializeToString()))
    encoded = tiny_model().SerializeToString()
    write_model(folder, "wrong", version=1)
    turned = tiny_manifest("wrong", encoded, labels=("green", "red", "blue"))
    write_model(folder, "wrong", version=2, manifest=turned)
    tags = tiny_manifest("tags", encoded)
    tags.output.kind = manifest_pb2.Output.INDEPENDENT_LOGITS
    write_model(folder, "tags", manifest=tags)
    random = tiny_manifest("random", encoded)
    random.weights.source = manifest_pb2.Weights.UNTRAINED
    write_model(folder, "random", manifest=random)
    with served(folder, version_policy="all") as address:
        yield address


@pytest.fixture
def colours(tmp_path) -> Path:
    """A folder with a subfolder for each colour, two images in each, and what systems leave there."""
    paint(tmp_path / "colours")
    return tmp_path / "colours"
