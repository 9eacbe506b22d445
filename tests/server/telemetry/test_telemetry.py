"""Nothing here reports to anybody: ONNX Runtime, which would, is told not to."""

import os
import subprocess
import sys

import pytest

# Each imports ONNX Runtime, or is imported before what does.
IMPORTERS = [
    "vistazo_server.engine.session",
    "vistazo_export.checks.parity",
    "vistazo_bench.measuring.limits",
]


@pytest.mark.parametrize("module", IMPORTERS)
def test_importing_onnx_runtime_leaves_no_identifier_of_the_machine(module, tmp_path):
    """With telemetry on, version 1.32 writes one below HOME as it is imported."""
    pytest.importorskip(module, exc_type=ImportError)
    left_out = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    script = f"import {module}, onnxruntime; onnxruntime.get_available_providers()"
    command = [sys.executable, "-c", script]
    subprocess.run(command, env=environment | {"HOME": str(tmp_path)}, check=True, timeout=100)

    assert not list(tmp_path.rglob("*deviceid*"))
    assert not list(tmp_path.rglob("onnxruntime*"))
