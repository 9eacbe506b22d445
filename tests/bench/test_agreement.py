"""How far reduced decoding is from exact: which answers are compared, and what is told of them."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from support.tiny import write_model
from vistazo_bench.standard.agreement import PIXELS, Compared, _enlarged, _figures


def test_other_answers_are_named_and_the_worst_picture_comes_first():
    compared = [
        Compared("a.png", (4, 3), "cat", "cat", 0.9, 0.01),
        Compared("b.png", (4, 3), "cat", "dog", 0.4, 0.05),
        Compared("c.png", (4, 3), "dog", "dog", 0.8, 0.0),
    ]

    same, largest, middle, *pictures = _figures("net", compared)

    assert (round(same.measured, 1), same.note) == (66.7, "b.png: cat → dog")
    assert (largest.measured, largest.note) == (0.05, "b.png")
    assert middle.measured == 0.01
    assert [(figure.name, figure.measured) for figure in pictures] == [
        ("net, b.png", 0.05),
        ("net, a.png", 0.01),
        ("net, c.png", 0.0),
    ]
    assert _figures("net", compared[::2])[0].note == "all of 2"


def test_a_picture_is_enlarged_to_twelve_megapixels_of_its_shape(tmp_path):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).resize((40, 10)).save(tmp_path / "a.png")

    [(name, file, (width, height))] = _enlarged(tmp_path / "a.png")

    with Image.open(io.BytesIO(file)) as image:
        assert (name, image.format, image.size) == ("a.png", "JPEG", (width, height))
    assert width / height == pytest.approx(4, rel=1e-3)
    assert width * height == pytest.approx(PIXELS, rel=1e-3)


@pytest.mark.slow
def test_two_servers_are_compared(tmp_path):
    write_model(tmp_path / "models")
    noise = np.random.default_rng(2).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "own.png")
    command = "from vistazo_bench.cli import bench_command; bench_command()"
    options = ["--models", tmp_path / "models", "--model", "tiny", "--image", tmp_path / "own.png"]
    done = subprocess.run(
        [sys.executable, "-c", command, "agreement", *map(str, options)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    same, largest, *_ = json.loads(done.stdout.splitlines()[-1])["figures"]
    [picture] = same["detail"]["pictures"]
    assert picture["picture"] == "own.png"
    assert same["measured"] == (100 if picture["exact"] == picture["reduced"] else 0)
    assert 0 < largest["measured"] < 1
