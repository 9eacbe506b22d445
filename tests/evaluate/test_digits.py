"""LeNet on the digits that it has never seen: an accuracy that is known, by another way."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix

from support.compose import ROOT
from support.threaded import served
from vistazo_client import Client
from vistazo_export.exporter import ExportRequest
from vistazo_export.networks import digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The held-out digits, as `python -m vistazo_export.networks.digits` writes them."""
    folder = tmp_path_factory.mktemp("held-out") / "digits"
    ran = CliRunner().invoke(digits.main, ["--out", str(folder)])
    assert ran.output == f"wrote 450 digits to {folder}\n"
    return folder


@pytest.fixture(scope="module")
def server(exports, tmp_path_factory):
    repository = tmp_path_factory.mktemp("exported") / "models"
    exports.put(ExportRequest("lenet", repository, max_batch_size=16))
    exports.put(ExportRequest("lenet", repository, precision="int8", max_batch_size=16))
    with served(repository) as address:
        yield address


def test_the_digits_are_written_as_they_are_and_never_into_a_full_folder(folder):
    data = digits.held_out()
    paths = sorted(folder.glob("*/*.png"), key=lambda path: path.stem)

    assert [path.parent.name for path in paths] == [str(label) for label in data.labels]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(path)) for path in paths]), data.images)
    again = CliRunner().invoke(digits.main, ["--out", str(folder)])
    assert again.exit_code == 1
    assert "is not empty; give another --out, or --replace" in again.output
    assert CliRunner().invoke(digits.main, ["--out", str(folder), "--replace"]).exit_code == 0
    assert len(list(folder.glob("*/*.png"))) == 450


def test_lenets_accuracy_and_confusion_are_those_of_its_answers(evaluate, server, folder):
    found = evaluate(folder, "--server", server, "--model", "lenet", "--min-top1", "0.97", "--json")
    data = digits.held_out()
    with Client(server) as client:
        answers = [result.top.index for result in client.classify(list(data.images), model="lenet")]

    assert found.status == 0
    metrics = found.json["metrics"]
    assert metrics["top1"]["value"] == accuracy_score(data.labels, answers)
    # What is known of these weights: one of 450 is wrong.
    assert metrics["top1"]["hits"] == 449
    assert metrics["top5"]["value"] == 1
    np.testing.assert_array_equal(metrics["confusion"]["matrix"], confusion_matrix(data.labels, answers))


def test_int8_is_compared_with_fp32_image_by_image(evaluate, server, folder):
    ran = evaluate(folder, "--server", server, "--model", "lenet-int8", "--baseline", "lenet", "--json")
    data = digits.held_out()
    with Client(server) as client:
        by_model = {
            model: np.array([r.top.index for r in client.classify(list(data.images), model=model)])
            for model in ("lenet", "lenet-int8")
        }

    baseline = ran.json["baseline"]
    small, full = by_model["lenet-int8"] == data.labels, by_model["lenet"] == data.labels
    assert baseline["comparison"]["only_model_right"] == int((small & ~full).sum())
    assert baseline["comparison"]["only_baseline_right"] == int((full & ~small).sum())
    assert baseline["comparison"]["agreement"]["hits"] == int(
        (by_model["lenet"] == by_model["lenet-int8"]).sum()
    )
    assert len(baseline["differences"]) == int((by_model["lenet"] != by_model["lenet-int8"]).sum())
    guide = (ROOT / "docs" / "guides" / "evaluate.md").read_text(encoding="utf-8")
    fields = [*ran.json, *ran.json["metrics"], "comparison", "differences"]
    assert [field for field in fields if f"`{field}`" not in guide] == []
    assert ran.json["model"]["precision"] == "int8"
