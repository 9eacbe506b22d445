"""`vistazo evaluate` against a real server: figures, tables, JSON, bounds and refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from support.foreign import classifier
from support.tiny import write_model

EVALUATE = [
    sys.executable,
    "-c",
    "from vistazo_client.cli import main; main(prog_name='vistazo')",
    "evaluate",
]


@pytest.fixture
def here(evaluate, tiny_server):
    """Run `vistazo evaluate` against the tiny server."""
    return lambda *arguments: evaluate(*arguments, "--server", tiny_server)


def test_a_folder_is_evaluated_and_told_in_tables(here, colours):
    ran = here(colours, "--model", "tiny")

    assert (ran.status, ran.stderr) == (0, "")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in ran.stdout.splitlines() if "│" in line
    ]
    assert ["images", "6"] in rows
    assert ["failed", "0"] in rows
    assert ["top-1", "100.0% (61.0% to 100.0%)"] in rows
    assert ["red", "2", "2", "100.0%", "100.0%", "100.0%"] in rows
    assert ["green", "·", "2", "·"] in rows
    assert "3 names matched by label text, to the letter." in ran.stdout
    # Five classes or fewer have no top-5.
    assert "top-5" not in ran.stdout


def test_json_is_one_object_with_everything(here, colours, tmp_path):
    shutil.copyfile(colours / "red" / "0.png", colours / "blue" / "wrong.png")
    (colours / "green" / "broken.png").write_bytes(b"no image")
    ran = here(colours, "--model", "tiny", "--json", "--output", tmp_path / "out" / "o.json")

    found = ran.json
    written = json.loads((tmp_path / "out" / "o.json").read_text())
    assert {**written, "created": ""} == {**found, "created": ""}
    assert found["images"] == {"total": 8, "answered": 7, "failed": 1}
    assert found["kind"] == "exclusive"
    assert found["model"] == {
        **found["model"], "name": "tiny", "version": "1", "weights": "checkpoint", "classes": 3,
    }  # fmt: skip
    assert found["matching"]["names"] == {"blue": 2, "green": 1, "red": 0}
    metrics = found["metrics"]
    assert (metrics["top1"]["hits"], metrics["top1"]["of"]) == (6, 7)
    assert metrics["confusion"]["matrix"] == [[2, 0, 0], [0, 2, 0], [1, 0, 2]]
    assert {"shown": 2, "answered": 0, "images": 1} in metrics["confusion"]["cells"]
    (mistake,) = found["mistakes"]
    assert mistake["image"].endswith("blue/wrong.png")
    assert (mistake["truth"], mistake["answers"][0]["label"]) == (["blue"], "red")
    (failure,) = found["failures"]
    assert failure["image"].endswith("green/broken.png")
    assert "expected" in failure["reason"]
    assert "Not answered by tiny:" in ran.stderr
    assert found["passed"]
    assert found["baseline"] is None


def test_a_failed_image_is_neither_right_nor_wrong(here, colours):
    before = here(colours, "--model", "tiny", "--json").json["metrics"]
    (colours / "green" / "broken.png").write_bytes(b"no image")
    (colours / "red" / "empty.jpg").touch()
    after = here(colours, "--model", "tiny", "--json").json

    assert after["metrics"] == before
    assert after["images"]["failed"] == 2


def test_nothing_answered_is_no_result(here, tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "a.png").write_bytes(b"no image")
    ran = here(tmp_path, "--model", "tiny")

    assert ran.status == 1
    assert "tiny answered none of 1 images; the first:" in ran.stderr


def test_a_csv_has_paths_relative_to_itself(here, colours, tmp_path):
    (tmp_path / "data.csv").write_text(
        "path,label\ncolours/red/0.png,Red\ncolours/blue/1.png,BLUE\ngone.png,red\n"
    )
    found = here(tmp_path / "data.csv", "--model", "tiny", "--json").json

    assert found["metrics"]["top1"]["hits"] == 2
    assert found["failures"] == [{"image": str(tmp_path / "gone.png"), "reason": "no such file"}]


def test_names_that_do_not_fit_are_refused_before_an_image_is_sent(here, colours):
    (colours / "red").rename(colours / "rot")
    ran = here(colours, "--model", "tiny")

    assert (ran.status, ran.stdout) == (1, "")
    assert (
        '2 of 3 names of the images match one label each of the model\'s 3; no label matches "rot"'
        in ran.stderr
    )
    assert "Traceback" not in ran.output


def test_a_mapping_file_makes_them_fit(here, colours, tmp_path):
    (colours / "red").rename(colours / "rot")
    (tmp_path / "m.toml").write_text('rot = "red"\ngreen = 1\nblue = "blue"\n')
    found = here(colours, "--model", "tiny", "--mapping", tmp_path / "m.toml", "--json").json

    assert found["matching"]["by"] == "mapping file"
    assert found["metrics"]["top1"]["value"] == 1


def test_folders_of_class_indices_are_matched_by_index(here, colours):
    for index, name in enumerate(("red", "green", "blue")):
        (colours / name).rename(colours / f"{index:03}")
    found = here(colours, "--model", "tiny", "--json").json

    assert found["matching"]["by"] == "class index"
    assert found["metrics"]["top1"]["value"] == 1


BROKEN_BOUNDS = [
    (["--min-top1", "0.9"], "--min-top1 0.9 is not kept: 0.857143"),
    (["--min-top1", "0.5"], "--max-failed 0 is not kept: 1"),
    (["--max-failed", "0"], "--max-failed 0 is not kept: 1"),
]


@pytest.mark.parametrize(("bound", "said"), BROKEN_BOUNDS)
def test_a_bound_that_is_not_kept_ends_with_status_1(here, colours, bound, said):
    shutil.copyfile(colours / "red" / "0.png", colours / "blue" / "wrong.png")
    (colours / "red" / "broken.jpg").write_bytes(b"no image")
    ran = here(colours, "--model", "tiny", "--json", *bound)

    assert ran.status == 1
    assert said in ran.stderr
    assert not ran.json["passed"]


@pytest.mark.parametrize("bound", [["--min-top1", "0.857"], ["--min-top1", "0.8", "--max-failed", "1"], []])
def test_a_bound_that_is_kept_ends_with_status_0(here, colours, bound):
    shutil.copyfile(colours / "red" / "0.png", colours / "blue" / "wrong.png")
    if "--max-failed" in bound:
        (colours / "red" / "broken.jpg").write_bytes(b"no image")

    assert here(colours, "--model", "tiny", "--json", *bound).status == 0


def test_exactly_the_bound_is_kept(here, colours):
    shutil.copyfile(colours / "red" / "0.png", colours / "blue" / "wrong.png")

    assert here(colours, "--model", "tiny", "--min-top1", str(6 / 7)).status == 0


def test_a_baseline_is_compared_on_the_same_images(here, colours):
    found = here(colours, "--model", "wrong", "--version", "2", "--baseline", "wrong:1", "--json").json

    # Version 2 calls red green and green red.
    comparison = found["baseline"]["comparison"]
    assert (comparison["both_right"], comparison["only_baseline_right"]) == (2, 4)
    assert (comparison["only_model_right"], comparison["both_wrong"]) == (0, 0)
    assert comparison["p_value"] == pytest.approx(0.125)
    # Labels are compared by what they say, not by where they stand.
    assert comparison["agreement"]["hits"] == 2
    assert len(found["baseline"]["differences"]) == 4
    difference = found["baseline"]["differences"][0]
    assert (difference["model_right"], difference["baseline_right"]) == (False, True)
    assert found["baseline"]["model"]["version"] == "1"
    assert found["baseline"]["metrics"]["top1"]["value"] == 1


def test_the_comparison_is_told_in_words(here, colours):
    ran = here(colours, "--model", "tiny", "--baseline", "soft")

    assert ran.status == 0
    assert "the answers are the same on 100.0%. Both are right on the same images." in ran.stdout
    assert "soft version 1" in ran.stdout


def test_a_baseline_elsewhere_is_asked_there(here, colours, tiny_server):
    found = here(
        colours, "--model", "wrong", "--version", "1", "--baseline-server", tiny_server,
        "--baseline", "wrong:2", "--json",
    ).json  # fmt: skip

    assert found["baseline"]["comparison"]["only_model_right"] == 4


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--model", "gone"], 1, "expected one that the server has ready (random, soft, tags, tiny, wrong)"),
        ([], 1, "got ''"),
        (["--model", "wrong", "--version", "9"], 1, "a version of wrong that is ready (1, 2), got '9'"),
        (["--model", "tiny", "--baseline", "gone"], 1, "--baseline: expected one that the server has ready"),
        (["--model", "tiny", "--baseline", "tiny"], 1, "would be compared with itself"),
        (["--model", "tiny", "--baseline", "tags"], 1, "cannot be compared"),
        (["--model", "tiny", "--baseline", ":1"], 2, "expected MODEL or MODEL:VERSION"),
        (["--model", "tags", "--min-top1", "0.5"], 2, "use --min-map"),
        (["--model", "tiny", "--min-map", "0.5"], 2, "use --min-top1"),
        (["--model", "tiny", "--min-top1", "nan"], 2, "nan is not in the range"),
        (["--model", "tiny", "--min-top1", "90"], 2, "not in the range"),
        (["--model", "tiny", "--serve-option", "--threads=1"], 2, "go with --models"),
        (["--model", "tiny", "--models", "."], 2, "expected --models or --server, got both"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(here, colours, arguments, status, said):
    ran = here(colours, *arguments)

    assert ran.status == status
    assert said in " ".join(ran.stderr.split())
    assert "Traceback" not in ran.output


def test_no_server_is_said(evaluate, colours):
    ran = evaluate(colours, "--server", "127.0.0.1:1", "--retries", 0, "--timeout", 5)

    assert ran.status == 1
    assert "no server at 127.0.0.1:1" in ran.stderr


def test_untrained_weights_are_shouted(here, colours):
    ran = here(colours, "--model", "random", "--json")

    assert "Warning: the weights of random are UNTRAINED" in ran.stderr
    assert any("UNTRAINED" in note for note in ran.json["notes"])


@pytest.fixture
def tagged(colours, tmp_path):
    """A CSV with an image of one colour, of two, and of none."""
    Image.new("RGB", (8, 8), (200, 200, 10)).save(tmp_path / "yellow.png")
    Image.new("RGB", (8, 8), (5, 5, 5)).save(tmp_path / "black.png")
    data = tmp_path / "tags.csv"
    data.write_text(
        "path,labels\ncolours/red/0.png,red\nyellow.png,red|green\nblack.png,\ncolours/blue/0.png,green\n"
    )
    return data


def test_a_multi_label_model_has_multi_label_figures(here, tagged):
    ran = here(tagged, "--model", "tags", "--threshold", "0.9", "--json")

    found = ran.json
    metrics = found["metrics"]
    assert found["kind"] == "multi-label"
    assert (metrics["exact_match"]["hits"], metrics["exact_match"]["of"]) == (3, 4)
    # Wrong are blue, which was said, and green, which was not: of 4 images times 3 classes.
    assert metrics["hamming_loss"] == pytest.approx(2 / 12)
    assert (metrics["micro"]["precision"], metrics["micro"]["recall"]) == (
        pytest.approx(3 / 4), pytest.approx(3 / 4),
    )  # fmt: skip
    (mistake,) = found["mistakes"]
    assert (mistake["truth"], [each["label"] for each in mistake["answers"]]) == (["green"], ["blue"])
    assert mistake["wrongness"] > 0.9


def test_a_multi_label_model_is_told_in_tables_and_held_to_its_own_bound(here, tagged):
    ran = here(tagged, "--model", "tags", "--threshold", "0.9", "--min-map", "0.99")

    assert ran.status == 1
    assert "--min-map 0.99 is not kept" in ran.stderr
    assert "mean average precision" in ran.stdout
    assert "every label right" in ran.stdout


def test_a_multi_label_model_takes_a_folder_for_images_of_one_label(here, colours):
    found = here(colours, "--model", "tags", "--threshold", "0.9", "--json").json

    assert found["metrics"]["exact_match"]["value"] == 1
    assert any("it is taken to show no other class" in note for note in found["notes"])


def test_several_labels_are_refused_where_classes_exclude_each_other(here, tagged):
    ran = here(tagged, "--model", "tiny")

    assert ran.status == 1
    assert "yellow.png has 2 labels (red | green)" in ran.stderr


def test_a_binary_model_is_judged_as_two_classes(evaluate, tmp_path):
    import onnx

    from vistazo_export.importer import ImportRequest, import_model

    graph = classifier(size=(8, 8), classes=1, ending="Sigmoid")
    onnx.save(graph, tmp_path / "spam.onnx")
    (tmp_path / "labels.txt").write_text("ham\nspam\n")
    (tmp_path / "how.toml").write_text(
        'resize_mode = "STRETCH"\ninterpolation = "bilinear"\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n'
    )
    import_model(
        ImportRequest(
            tmp_path / "spam.onnx", "spam", tmp_path / "models", labels=str(tmp_path / "labels.txt"),
            preprocess=str(tmp_path / "how.toml"),
        )
    )  # fmt: skip
    for name in ("ham", "spam"):
        (tmp_path / "mail" / name).mkdir(parents=True)
        for number, grey in enumerate((0, 255)):
            Image.new("RGB", (8, 8), (grey, grey // 2, 10)).save(tmp_path / "mail" / name / f"{number}.png")
    ran = evaluate(tmp_path / "mail", "--models", tmp_path / "models", "--min-top1", "0.5", "--json")

    found = ran.json
    assert found["kind"] == "exclusive"
    # The same images under both names: half of them right, whatever is answered.
    assert found["metrics"]["top1"]["value"] == 0.5
    assert any("spam is binary" in note for note in found["notes"])


def marked(mark):
    """Return the ids of the processes that have this in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_text(errors="replace"):
                found.append(process.name)
    return found


def command_of(process):
    try:
        return Path("/proc", process, "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def started(*arguments):
    """Run the command in a process of its own, which has to end all that it starts."""
    mark = f"EVALUATE_TEST={os.getpid()}"
    ran = subprocess.run(
        [*EVALUATE, *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "EVALUATE_TEST": str(os.getpid())}, timeout=100,
        check=False,
    )  # fmt: skip
    assert marked(mark) == []
    return ran


def test_a_repository_is_served_for_the_time_of_it(tmp_path, colours):
    write_model(tmp_path / "models")
    write_model(tmp_path / "models", "broken")
    (tmp_path / "models" / "broken" / "1" / "model.onnx").write_bytes(b"")
    ran = started(
        colours, "--models", tmp_path / "models", "--model", "tiny", "--json", "--serve-option=--threads=1"
    )

    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["metrics"]["top1"]["value"] == 1


@pytest.mark.slow
def test_a_baseline_may_have_a_server_of_its_own_with_other_options(tmp_path, colours):
    write_model(tmp_path / "models")
    write_model(tmp_path / "models", version=2)
    ran = started(
        colours, "--models", tmp_path / "models", "--model", "tiny", "--version", "1", "--json",
        "--baseline-serve-option=--max-batch-size=1",
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["baseline"]["model"]["version"] == "1"
    assert found["baseline"]["comparison"]["agreement"]["value"] == 1


def test_a_model_that_the_repository_has_not_is_said_before_a_server_starts(evaluate, tmp_path, colours):
    write_model(tmp_path / "models")
    ran = evaluate(colours, "--models", tmp_path / "models", "--model", "gone")

    assert ran.status == 1
    assert "has no model 'gone'" in ran.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_tables_print_in_any_encoding(tiny_server, tmp_path, encoding):
    folder = tmp_path / "猫"
    (folder / "red").mkdir(parents=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "red" / "é.png")
    (folder / "red" / "kaputt \udcff.png").write_bytes(b"no image")
    ran = subprocess.run(
        [*EVALUATE, folder, "--model", "tiny", "--server", tiny_server, "--output", tmp_path / "o.json"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, timeout=60, check=False,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stderr
    assert b"100.0%" in ran.stdout
    assert json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))["images"]["failed"] == 1


def test_a_progress_bar_shows_on_a_terminal(tiny_server, colours):
    terminal, stderr = os.openpty()
    shown = []

    def read():
        # Until the other end is closed.
        with suppress(OSError):
            while part := os.read(terminal, 4096):
                shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [*EVALUATE, colours, "--model", "tiny", "--server", tiny_server, "--json"],
        stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, "TERM": "xterm"}, timeout=60,
        check=True,
    )  # fmt: skip
    os.close(stderr)
    reader.join()
    os.close(terminal)

    assert b"Evaluating tiny" in b"".join(shown)
    assert b"6/6" in b"".join(shown)
    assert json.loads(done.stdout)["images"]["answered"] == 6


def test_a_file_that_cannot_be_written_is_said(here, colours, tmp_path):
    (tmp_path / "file").touch()
    ran = here(colours, "--model", "tiny", "--output", tmp_path / "file" / "o.json")

    assert ran.status == 1
    assert "cannot be written" in ran.stderr


def test_a_missing_package_is_said_before_any_image_is_sent(here, colours, monkeypatch):
    monkeypatch.setattr("vistazo_evaluate.cli.find_spec", lambda name: None if name == "sklearn" else name)
    ran = here(colours, "--model", "tiny")

    assert ran.status == 1
    assert (
        "needs the Python package sklearn, which is not installed: pip install 'vistazo[evaluate]'"
        in ran.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_ends_its_server(tmp_path, colours, signal_number):
    write_model(tmp_path / "models")
    process = subprocess.Popen(
        [*EVALUATE, colours, "--models", tmp_path / "models"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "EVALUATE_TEST": f"ended-{os.getpid()}"},
    )  # fmt: skip
    mark = f"EVALUATE_TEST=ended-{os.getpid()}"
    deadline = time.monotonic() + 60
    while not (servers := [pid for pid in marked(mark) if "serve" in command_of(pid)]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal_number)

    assert process.wait(60) in (130, -signal.SIGTERM)
    while set(servers) & set(marked(mark)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
