"""NVIDIA's load generator runs against the server, and finds what it looks for in Triton."""

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from support.process import server_process
from support.tiny import write_model

FOLDER = Path(__file__).parents[3] / ".perf_analyzer"
BINARY = FOLDER / "bin" / "perf_analyzer"

# For one run, whose windows are of less than a second, on a machine that is busy with other tests.
SECONDS = 100

pytestmark = [
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.skipif(
        not BINARY.exists(),
        reason=f"no perf_analyzer on this {platform.system()}; `make perf-analyzer` fetches it",
    ),
    pytest.mark.timeout(2 * SECONDS),
]


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize(
    "options", [(), ("--async",), ("--streaming", "--async")], ids=["sync", "async", "stream"]
)
def test_it_measures_the_server_without_a_warning(tmp_path: Path, concurrency: int, options: tuple[str, ...]):
    write_model(tmp_path / "models")
    with server_process(tmp_path / "models") as server:
        completed = subprocess.run(
            [
                *(str(BINARY), "-m", "tiny", "-i", "grpc", "-u", server.address),
                *("--concurrency-range", str(concurrency), "--measurement-interval", "500"),
                # How steady the figures are says something of the machine, not of the server.
                *("--stability-percentage", "999", *options),
            ],
            env=os.environ | {"LD_LIBRARY_PATH": str(FOLDER / "lib")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    output = completed.stdout + completed.stderr

    assert completed.returncode == 0, output
    assert not re.search("warning|error|failed", output, re.IGNORECASE), output
    assert f"Request concurrency: {concurrency}" in output
    throughput = re.search(r"Throughput: ([\d.]+) infer/sec", output)
    assert throughput is not None, output
    assert float(throughput[1]) > 0
    server_side = output.split("Server:")[1]
    count = re.search(r"Inference count: (\d+)", server_side)
    assert count is not None, output
    assert int(count[1]) > 0
    for part in ("queue", "compute input", "compute infer", "compute output"):
        assert part in server_side
