"""`preprocess="local"` in processes of their own: without Pillow, after a fork, and the command."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from support.process import environment
from support.shades import label, pixels, sent, shade
from vistazo_client.cli import main

pytestmark = pytest.mark.usefixtures("quick_retries")


WITHOUT_PILLOW = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "PIL":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )


def test_without_pillow_the_extra_is_named_and_all_else_works(server):
    code = """
from vistazo_client import AsyncClient, Client
for kind in (Client, AsyncClient):
    try:
        kind(sys.argv[1], preprocess="local")
    except ImportError as error:
        print(error)
with Client(sys.argv[1]) as client:
    print(client.classify(b"cat").top.label)
from vistazo_client.cli import main
main(["classify", "--local", __import__("os").devnull, "--server", sys.argv[1]])
"""
    result = run(WITHOUT_PILLOW + code, server.address)

    told = "preprocess='local' needs Pillow, which is not installed; pip install 'vistazo[local]'"
    assert result.stdout.splitlines() == [told, told, "cat"]
    assert (result.stderr, result.returncode) == (f"Error: {told}\n", 1)


def test_a_client_that_does_not_prepare_imports_no_pillow_and_no_preprocessing():
    code = """
import sys
from vistazo_client import Client
Client("127.0.0.1:1").close()
print({"PIL", "vistazo_preprocessing", "vistazo_client._local"} & set(sys.modules))
"""
    result = run(code)

    assert (result.stdout, result.returncode) == ("set()\n", 0), result.stderr


def test_the_command_prepares_images_and_prints_what_it_always_does(told, tmp_path):
    (tmp_path / "b.png").write_bytes(shade(98))
    arguments = ["classify", str(tmp_path), "--model", "resnet18", "--json", "--server", told.address]
    local, plain = (CliRunner().invoke(main, [*arguments, *more]) for more in (["--local"], []))

    assert (local.exit_code, local.stderr) == (plain.exit_code, plain.stderr) == (0, "")
    assert json.loads(local.stdout)["predictions"][0]["label"] == label(98)
    assert sent(told) == [(pixels(98), "first"), (shade(98), "")]


def test_the_command_says_on_standard_error_that_the_server_prepares(server, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(shade(1))
    arguments = ["classify", tmp_path, "--model", "resnet18", "--local", "--json", "--server", server.address]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])

    assert result.exit_code == 0
    assert result.stderr == (
        "Warning: the images for model 'resnet18' are prepared by the server: it does not say how it "
        "prepares images; it may be older\n"
    )
    assert len(result.stdout.splitlines()) == 2
    assert sent(server) == [(shade(1), "")] * 2


FORK = """
import os, sys
import numpy as np
from vistazo_client import Client

client = Client(sys.argv[1], timeout=10, preprocess="local")

def label(value):
    return client.classify(np.full((9, 9, 3), value, np.uint8), model="resnet18").top.label[:1]

print(label(65), flush=True)
child = os.fork()
if child == 0:
    os.write(1, (label(66) + chr(10)).encode())
    client.close()
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(label(67), status)
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_both_processes_prepare_images_after_a_fork(told):
    result = run(FORK, told.address)

    assert (result.stdout.splitlines(), result.returncode) == (["A", "B", "C 0"], 0), result.stderr
