"""The GPU check, rehearsed on the CPU: what it asserts must be able to fail."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest

from support.endings import ended, node
from support.tiny import tiny_model, write_model
from vistazo_bench import gpu
from vistazo_bench.errors import BenchError
from vistazo_client.cli.serving import serving
from vistazo_export.importer import ImportRequest, import_model

pytestmark = pytest.mark.slow  # it measures: each check takes its seconds


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


@pytest.mark.parametrize(
    ("graph", "labels", "kind"),
    [
        (ended(node("Softmax", ["logits"], ["scores"])), "abcde", ""),
        (ended(node("Sigmoid", ["logits"], ["scores"])), "abcde", ""),
        (ended(node("Identity", ["logits"], ["scores"])), "abcde", "independent-logits"),
        (ended(node("Sigmoid", ["logits"], ["scores"]), classes=1), "ab", ""),
        (ended(node("Identity", ["logits"], ["scores"]), classes=1), "ab", "independent-logits"),
    ],
    ids=["probabilities", "independent", "independent logits", "binary", "binary logits"],
)
def test_each_kind_of_scores_is_compared_as_what_it_is(
    tmp_path: Path, graph: onnx.ModelProto, labels: str, kind: str
):
    source, names = tmp_path / "graph.onnx", tmp_path / "labels.txt"
    onnx.save(graph, source)
    names.write_text("\n".join(labels))
    models = tmp_path / "models"
    import_model(
        ImportRequest(source, "m", models, preprocess="imagenet", labels=str(names), output_kind=kind)
    )
    with serving(models, ("--device", "cpu")) as server:
        (model,) = server.models().values()
        found = gpu.check_parity(server, model, models / "m" / "1", "cpu")

    assert all(one["max_rel_logit_diff"] < 1e-5 for one in found.values())
    assert all(one["top1_agreement"] == 1 for one in found.values())


def test_answers_that_are_not_the_cpus_fail_the_check(tmp_path: Path):
    write_model(tmp_path / "served")
    other = write_model(tmp_path / "other", model=tiny_model(divisor=9))
    with serving(tmp_path / "served", ("--device", "cpu")) as server:
        (model,) = server.models().values()
        with pytest.raises(BenchError, match="tiny at batch 1: expected scores within"):
            gpu.check_parity(server, model, other, "cpu")


def test_a_repository_without_models_is_refused(tmp_path: Path):
    ran = gpu_check("--models", tmp_path)

    assert ran.returncode == 2
    assert "has no NAME/VERSION/model.onnx" in ran.stderr
