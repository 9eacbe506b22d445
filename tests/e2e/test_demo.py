"""`make demo`, with the one network that is quick to export."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the demo exports, which needs torch")

DEMO = Path(__file__).with_name("demo.py")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    work = tmp_path_factory.mktemp("demo")
    return work, _run(work)


def _run(work):
    return subprocess.run(
        [sys.executable, DEMO, "--models", work / "models", "--work", work / "work", "lenet"],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_demo_exports_serves_classifies_and_ends_cleanly(first_run):
    _, result = first_run

    assert result.returncode == 0, result.stderr
    assert " of 20 digits right." in result.stdout
    assert 'vistazo_inference_requests_total{model="lenet",outcome="ok",version="1"}' in result.stdout
    assert "The server drained and ended cleanly." in result.stdout


def test_a_second_run_uses_what_is_there(first_run):
    work, _ = first_run
    model = work / "models" / "lenet" / "1" / "model.onnx"
    written = model.stat().st_mtime_ns

    result = _run(work)

    assert result.returncode == 0, result.stderr
    assert model.stat().st_mtime_ns == written
    assert [path.name for path in model.parent.parent.iterdir() if path.is_dir()] == ["1"]
