"""NVIDIA's own client against a real server: the suites in tests/interop, one process for each.

They cannot run in this one: the client's generated code and ours are both of package `inference`, which
protobuf takes once. So a suite is started as a pytest of its own, and each of its tests is looked up here.
"""

import ast
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

from support.graphs import sum_and_difference, write_graph
from support.onnx_zoo import LIGHT, LIGHT_NAMES, scaled, write_slow, write_zoo
from support.process import server_process
from vistazo_export.exporter import ExportRequest, export_model
from vistazo_export.importer import ImportRequest, import_model

TESTS = Path(__file__).parents[2]

# One run of the slow model takes about a quarter of a second, on one thread: several would wait for one
# another on a machine with other work.
SLOW_COST = 600

# For a whole suite, its server's start and its slowest machine included.
SUITE_SECONDS = 500


@dataclass(frozen=True)
class Suite:
    """Tests of one file in tests/interop, and the server that they want."""

    file: str
    fill: Callable[[Path], object]
    """Writes the models into an empty repository."""
    flags: tuple[str, ...] = ()
    slow: bool = False
    """Networks up to VGG-19, each made, run and compared: some twenty seconds."""

    @property
    def path(self) -> Path:
        return TESTS / "interop" / self.file

    def names(self) -> list[str]:
        """Return the names of the file's tests."""
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        return [function.name for function in functions if function.name.startswith("test_")]


def fill_for_inference(models: Path) -> None:
    write_zoo(models)
    export_model(ExportRequest("lenet", models, max_batch_size=8))


def fill_for_control(models: Path) -> None:
    write_graph(models, "scaled", scaled(1))
    write_graph(models, "simple", sum_and_difference())


def fill_with_bare_networks(models: Path) -> None:
    for name in LIGHT_NAMES:
        folder = models / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes((LIGHT / f"light_{name}.onnx").read_bytes())


def fill_with_imported_networks(models: Path) -> None:
    for name in LIGHT_NAMES:
        import_model(
            ImportRequest(
                LIGHT / f"light_{name}.onnx", name, models, preprocess="imagenet", labels="imagenet"
            )
        )


SUITES = {
    "infer": Suite("suite_infer.py", fill_for_inference),
    "waits": Suite(
        "suite_waits.py",
        partial(write_slow, cost=SLOW_COST),
        ("--max-batch-size", "1", "--queue-limit", "4", "--threads", "1"),
    ),
    "control": Suite(
        "suite_control.py", fill_for_control, ("--model-control", "explicit", "--load", "scaled")
    ),
    "light, bare": Suite("suite_light.py", fill_with_bare_networks, slow=True),
    "light, imported": Suite("suite_light.py", fill_with_imported_networks, slow=True),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, list[str | None]]]:
    """Run a suite, once, and return for each of its tests the failure of each case, None where it passed."""

    @cache
    def run(name: str) -> dict[str, list[str | None]]:
        suite, folder = SUITES[name], tmp_path_factory.mktemp("triton")
        models, report = folder / "models", folder / "report.xml"
        suite.fill(models)
        with server_process(models, *suite.flags) as server:
            where = {
                "address": server.address,
                "metrics": f"http://127.0.0.1:{server.metrics_port}/metrics",
                "models": str(models),
                "pid": server.process.pid,
            }
            completed = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    f"--junitxml={report}",
                    suite.path,
                ],
                cwd=TESTS.parent,
                env=os.environ | {"TRITON_SUITE": json.dumps(where)},
                capture_output=True,
                text=True,
                timeout=SUITE_SECONDS,
                check=False,
            )
        # 1: some failed. More: it could not be collected, or the process ended.
        assert completed.returncode in {0, 1}, completed.stdout[-4000:] + completed.stderr[-4000:]
        # What a client does is never an error of the server's, and it has nothing to say outside its log.
        errors = [line for line in server.log if line["level"] in {"error", "critical"}]
        assert [line for line in errors if line["event"] != "model_failed"] == []
        assert server.other_output == []
        return read_report(report)

    return run


def read_report(path: Path) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        failure = next((part for part in case if part.tag in {"failure", "error", "skipped"}), None)
        message = None if failure is None else f"{case.get('name')}: {failure.text or failure.get('message')}"
        found.setdefault(str(case.get("name")).split("[")[0], []).append(message)
    return found


@pytest.mark.timeout(SUITE_SECONDS + 100)
@pytest.mark.parametrize(
    ("suite", "name"),
    [
        pytest.param(title, name, marks=[pytest.mark.slow] if suite.slow else [])
        for title, suite in SUITES.items()
        for name in suite.names()
    ],
)
def test_with_nvidias_client(outcomes: Callable[[str], dict[str, list[str | None]]], suite: str, name: str):
    cases = outcomes(suite).get(name, [])

    assert cases, "the suite did not run it"
    assert [failure for failure in cases if failure] == []


def test_at_least_twenty_are_ports_of_tritons_own():
    """Each says in its docstring which test of Triton's qa/ it comes from."""
    ports = set()
    for suite in SUITES.values():
        for node in ast.parse(suite.path.read_text(encoding="utf-8")).body:
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            if named and (ast.get_docstring(node) or "").startswith("L0_"):
                ports.add((suite.file, node.name))

    assert len(ports) >= 20
