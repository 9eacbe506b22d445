"""The GPU check, rehearsed on the CPU: what it asserts must be able to fail."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from support.tiny import tiny_model, write_model
from vistazo_bench import gpu
from vistazo_bench.errors import BenchError
from vistazo_bench.measuring.serving import serving


def gpu_check(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vistazo_bench.gpu", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.skipif(
    gpu.CUDA_PROVIDER in onnxruntime.get_available_providers(), reason="there is CUDA here: it would run"
)
def test_without_cuda_it_says_so_in_one_line_and_ends_well(tmp_path: Path):
    write_model(tmp_path)
    ran = gpu_check("--models", tmp_path)

    assert ran.returncode == 0
    assert ran.stdout.startswith("gpu-check skipped: ")
    assert ran.stdout.count("\n") == 1


def test_on_the_cpu_it_compares_and_measures_and_writes_json(tmp_path: Path):
    write_model(tmp_path / "models")
    ran = gpu_check("--models", tmp_path / "models", "--device", "cpu", "--quick", "--output", tmp_path / "o")

    assert ran.returncode == 0, ran.stderr
    result = json.loads((tmp_path / "o").read_text())
    assert json.loads(ran.stdout.splitlines()[-1]) == result
    model = result["models"]["tiny"]
    assert model["device"] == "cpu"
    assert set(model["parity"]) == {"1", "2", "3", "8", "32"}
    assert all(0 <= one["max_rel_logit_diff"] < 1e-5 for one in model["parity"].values())
    for kind in ("tensor", "jpeg"):
        assert {
            batch for batch, one in model["throughput"][kind].items() if one["images_per_second"] > 0
        } == {
            "1",
            "8",
        }


def test_answers_that_are_not_the_cpus_fail_the_check(tmp_path: Path):
    write_model(tmp_path / "served")
    other = write_model(tmp_path / "other", model=tiny_model(divisor=9))
    with serving(tmp_path / "served", ("--device", "cpu")) as server:
        (model,) = server.models().values()
        with pytest.raises(BenchError, match="tiny at batch 1: expected logits within"):
            gpu.check_parity(server, model, other, "cpu")


def test_a_repository_without_models_is_refused(tmp_path: Path):
    ran = gpu_check("--models", tmp_path)

    assert ran.returncode == 2
    assert "has no NAME/VERSION/model.onnx" in ran.stderr
