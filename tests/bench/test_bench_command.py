"""The command against a real server on a tiny repository: that it runs, cleans up and reports."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.tiny import write_model
from vistazo_bench.cli import bench_command
from vistazo_bench.standard.int8 import held_out_digits

RUN = "from vistazo_bench.cli import bench_command; bench_command()"


def run(*arguments):
    return subprocess.run(  # a process of its own: it starts others, and must end them
        [sys.executable, "-c", RUN, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )


def last_line(done):
    return json.loads(done.stdout.splitlines()[-1])


def children_left():
    """Return the processes of this test's session that were started by a benchmark and live on."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # Those of others may hold any bytes.
            command = (process / "cmdline").read_text(errors="replace")
            environment = (process / "environ").read_text(errors="replace")
        except OSError:
            continue
        if f"BENCH_TEST={os.getpid()}" in environment:
            left.append(command)
    return left


@pytest.fixture
def repository(tmp_path):
    write_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def marked(monkeypatch):
    monkeypatch.setenv("BENCH_TEST", str(os.getpid()))


def test_a_closed_loop_has_its_limits_beside_it_and_leaves_nothing_running(repository, tmp_path, marked):
    done = run(
        *("--models", repository, "--concurrency", 3, "--duration", 0.2, "--warmup", 0.05, "--rounds", 2),
        *("--input", "jpeg", "--images-per-request", 2, "--output", tmp_path / "result.json"),
    )
    assert done.returncode == 0, done.stderr
    result = last_line(done)
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert {name.rpartition(": ")[2] for name in figures} == {
        *("throughput", "p50", "p90", "p99", "of a bare grpc.aio echo"),
        "of what raw throughput and decode time allow",
        *("decoding", "resizing and cropping", "inference"),
        *(name.rpartition(": ")[2] for name in figures if "ONNX Runtime alone" in name),
    }
    assert all(figure["measured"] > 0 for figure in figures.values())
    assert result["answers_wrong"] == 0
    assert result["scenario"] == "closed loop"
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert children_left() == []


@pytest.mark.slow
@pytest.mark.serial
def test_photographs_are_measured_in_three_ways_with_what_they_cost(repository, marked):
    done = run("photographs", "--models", repository, "--model", "tiny", "--size", "160x120", "--quick")
    assert done.returncode == 0, done.stderr
    result = last_line(done)
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert all(figure["measured"] > 0 for figure in figures.values())
    targets = {name: figure["target"] for name, figure in figures.items() if figure["target"] is not None}
    assert targets == {
        "tiny, 16 callers: reduced ÷ exact": 3.0,
        "tiny, 16 callers, local: of ONNX Runtime alone": 0.9,
    }
    costs = {name: figure for name, figure in figures.items() if figure["unit"] == "ms"}
    assert set(costs) == {
        f"tiny, {way}: {what}"
        for way in ("exact", "reduced", "small")
        for what in ("decoding", "resizing and cropping", "inference")
    }
    assert "to 160×120" in costs["tiny, exact: decoding"]["note"]
    assert "to 20×15" in costs["tiny, reduced: decoding"]["note"]
    assert [command.rpartition(" ")[2] for command in result["server_commands"]] == ["exact", "reduced"]
    assert (result["scenario"], result["answers_wrong"]) == ("photographs, quick", 0)
    assert children_left() == []


def test_an_open_loop_and_a_search_report_their_rates(repository):
    common = ("--models", repository, "--duration", 0.3, "--warmup", 0.05, "--rounds", 1)
    Image.new("RGB", (60, 40), (10, 200, 30)).save(repository.parent / "own.png")
    own = ("--image", repository.parent / "own.png")
    opened = run(*common, "--rate", 40, "--deadline-ms", 5000, *own)
    assert opened.returncode == 0, opened.stderr
    assert "own.png as it is (PNG 60×40)" in opened.stderr
    names = {figure["name"]: figure["measured"] for figure in last_line(opened)["figures"]}
    assert names["tiny, 40 requests/s: answered in time"] == 100
    assert min(names[f"tiny: {what}"] for what in ("decoding", "resizing and cropping", "inference")) > 0
    searched = run(*common, "--search", "--p99-ms", 5000, *own, "--input", "local")
    assert "prepared beforehand from own.png as it is" in searched.stderr
    assert searched.returncode == 0, searched.stderr
    rate = last_line(searched)["figures"][0]
    assert rate["measured"] > 0
    assert all({"rate", "kept", "p99_seconds"} <= set(probe) for probe in rate["detail"]["probes"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_takes_its_processes_with_it(repository, marked, number):
    arguments = [sys.executable, "-c", RUN, "--models", str(repository), "--duration", "60"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "round 1" in line:
                break
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert children_left() == []


def test_a_server_that_cannot_start_is_an_error_in_one_line(tmp_path, marked):
    (tmp_path / "empty").mkdir()
    done = run("--models", tmp_path / "empty", "--duration", 0.1)
    assert done.returncode != 0
    assert "vistazo serve did not start" in done.stderr
    assert children_left() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--server HOST:PORT or --models DIR"),
        (("--server", "http://x"), "expected the server's address as HOST:PORT"),
        (("--models", ".", "--search"), "--search needs --p99-ms"),
        (("--models", ".", "--rate", "3", "--standard"), "only one of"),
        (("--models", ".", "--deadline-ms", "3"), "--deadline-ms goes with --rate"),
        (("standard",), "give it --models"),
        (("photographs",), "give it --models"),
        (("photographs", "--rate", "3", "--models", "."), "only one of"),
        (("--models", ".", "--input", "file"), "give it that"),
        (("--models", ".", "--input", "file", "--image", "x.jpg", "--size", "8x8"), "no --size"),
        (("--models", ".", "--input", "tensor", "--size", "8x8"), "--size goes with"),
        (("--models", ".", "--size", "8"), "expected WIDTHxHEIGHT"),
        (("--models", ".", "--size", "99999x8"), "expected WIDTHxHEIGHT"),
        (("--quick", "--models", "."), "--quick goes with"),
        (("agreement", "--quick", "--models", "."), "--quick goes with"),
        (("agreement", "--models", "."), "give it --model"),
        (("standard", "--server", "127.0.0.1:1", "--models", "."), "not --server"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(arguments, said):
    result = CliRunner().invoke(bench_command, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_the_digits_are_the_ones_that_training_held_out():
    from vistazo_export.networks.digits import held_out

    images, labels = held_out_digits()
    assert np.array_equal(images, held_out().images)
    assert np.array_equal(labels, held_out().labels)
