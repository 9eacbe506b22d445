"""`make demo`, with the two networks whose trained weights are at hand everywhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the demo exports, which needs torch")

from vistazo_export.exporter import ExportRequest

DEMO = Path(__file__).with_name("demo.py")
NETWORKS = ("lenet", "efficientnet_lite0")

# An export, a server and a dozen commands.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PHOTOGRAPHS = {
    "chelsea.png": "(tabby|tiger cat|Egyptian cat)",
    "coffee.png": "(espresso|cup)",
    "rocket.jpg": "(missile|projectile)",
    "china.jpg": "palace",
    "flower.jpg": "daisy",
}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, exports):
    work = tmp_path_factory.mktemp("demo")
    # Exported before, by the tests of the network: the demo takes what is there. LeNet it exports itself.
    exports.put(ExportRequest("efficientnet_lite0", work / "models"))
    return work, _run(work)


def _run(work):
    return subprocess.run(
        [sys.executable, DEMO, "--models", work / "models", "--work", work / "work", *NETWORKS],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def demo():
    """The demo as a module."""
    spec = importlib.util.spec_from_file_location("vistazo_demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_demo_exports_serves_classifies_and_ends_cleanly(first_run):
    _, result = first_run

    assert result.returncode == 0, result.stderr
    assert " of 20 digits right." in result.stdout
    assert 'vistazo_inference_requests_total{model="lenet",outcome="ok",version="1"}' in result.stdout
    assert "The server drained and ended cleanly." in result.stdout


def test_the_demo_evaluates_and_says_where_the_report_lies(first_run):
    work, result = first_run
    report = work / "work" / "lenet.html"

    assert f"The report of the evaluation is {report}: open it in a browser." in result.stdout
    assert report.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_photograph_is_seen_for_what_it_shows(first_run, name):
    _, result = first_run

    assert re.search(rf"✓ {re.escape(name)} shows .*: {PHOTOGRAPHS[name]}\n", result.stdout), result.stdout
    assert "UNTRAINED" not in result.stdout


def test_a_second_run_uses_what_is_there(first_run):
    work, _ = first_run
    models = [work / "models" / name / "1" / "model.onnx" for name in NETWORKS]
    written = [model.stat().st_mtime_ns for model in models]

    result = _run(work)

    assert result.returncode == 0, result.stderr
    assert [model.stat().st_mtime_ns for model in models] == written
    for model in models:
        assert [path.name for path in model.parent.parent.iterdir() if path.is_dir()] == ["1"]


def test_a_photograph_that_is_taken_for_something_else_is_named(demo, capsys):
    lines = [
        f'{{"image": "photographs/{photograph.name}", "predictions": [{{"label": "{label}"}}]}}'
        for photograph in demo.PHOTOGRAPHS
        for label in [min(photograph.labels) if photograph.name != "china.jpg" else "toaster"]
    ]

    assert demo.check_photographs("\n".join(lines)) == ["china.jpg"]
    assert "✗ china.jpg shows a palace: toaster" in capsys.readouterr().out


def test_untrained_networks_are_named_with_what_they_need(demo):
    notice = demo.untrained_notice(["resnet18", "alexnet", "vgg16"])

    assert notice.startswith("resnet18, alexnet and vgg16: served, too, but UNTRAINED")
    assert "vistazo export resnet18 --weights-mirror URL" in notice
    assert demo.untrained_notice(["nin"]).startswith("nin: served")
