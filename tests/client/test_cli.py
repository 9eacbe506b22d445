"""The `vistazo` command as its users see it: what goes where, and the exit status."""

import json
import os
import signal
import subprocess
import sys

import grpc
import pytest
from click.testing import CliRunner

import vistazo_client
from vistazo_client.cli import main

pytestmark = pytest.mark.usefixtures("quick_retries")

VISTAZO = [sys.executable, "-c", "from vistazo_client.cli import main; main(prog_name='vistazo')"]


@pytest.fixture
def vistazo(server):
    """Run `vistazo` with these arguments against the fake server."""

    def run(*arguments):
        return CliRunner().invoke(
            main, [str(each) for each in arguments], env={"VISTAZO_SERVER": server.address}
        )

    return run


@pytest.fixture
def folder(tmp_path):
    """Two images, one with an upper-case suffix, and things beside them that are no images."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.jpg", "a.PNG", "notes.txt", "deeper/c.jpg"):
        (folder / name).write_text(f"content of {name}")
    return folder


def json_lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_classify_prints_a_table_of_ranked_predictions(vistazo, folder):
    result = vistazo("classify", folder / "b.jpg", "--top", 2)

    assert result.exit_code == 0
    assert result.stderr == ""
    assert "resnet18 version 1" in result.stdout
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line
    ]
    assert [row[:4] for row in rows] == [
        [str(folder / "b.jpg"), "1", "content of b.jpg", "50.0%"],
        ["", "2", "class 2", "25.0%"],
    ]
    assert len(rows[0][4]) == 2 * len(rows[1][4])


def test_a_folder_stands_for_the_images_directly_in_it(vistazo, folder):
    result = vistazo("classify", folder, "--json")

    assert result.exit_code == 0
    assert [line["image"] for line in json_lines(result)] == [str(folder / "a.PNG"), str(folder / "b.jpg")]


HIDDEN = ("._b.jpg", ".hidden.png", ".DS_Store", "Thumbs.db", "desktop.ini", "._.DS_Store", ".jpg")


def test_what_systems_leave_in_a_folder_is_skipped(vistazo, folder):
    for name in HIDDEN:
        (folder / name).write_bytes(b"\0\x05\x16\x07")
    (folder / "folder.jpg").mkdir()

    result = vistazo("classify", folder, "--json")

    assert (result.exit_code, result.stderr) == (0, "")
    assert [line["image"] for line in json_lines(result)] == [str(folder / "a.PNG"), str(folder / "b.jpg")]


def test_a_folder_of_hidden_files_alone_is_said_to_be_one(vistazo, tmp_path):
    (tmp_path / "._cat.jpg").touch()

    result = vistazo("classify", tmp_path)

    assert result.exit_code == 1
    assert "no images in this folder (.jpg, .jpeg, .png, .webp, .bmp), but 1 hidden file" in result.stderr


def test_a_hidden_file_that_is_named_is_classified(vistazo, tmp_path):
    (tmp_path / ".cat.jpg").write_text("a cat")

    assert vistazo("classify", tmp_path / ".cat.jpg").exit_code == 0


def test_json_is_one_whole_object_for_each_image(vistazo, folder):
    result = vistazo(
        "classify", folder / "b.jpg", "--top", 1, "--json", "--model", "resnet18", "--version", "3"
    )

    assert json_lines(result) == [
        {
            "image": str(folder / "b.jpg"),
            "model": "resnet18",
            "version": "3",
            "predictions": [{"index": 7, "label": "content of b.jpg", "probability": 0.5}],
            "batch_size": 1,
            "timing": {"queue_seconds": 0.25, "preprocess_seconds": 0.5, "compute_seconds": 1.0},
            "error": None,
        }
    ]


def test_what_is_not_probable_enough_is_left_out(vistazo, folder):
    result = vistazo("classify", folder / "b.jpg", "--min-probability", 0.2, "--json")

    (line,) = json_lines(result)
    assert [each["probability"] for each in line["predictions"]] == [0.5, 0.25]


def test_an_image_with_nothing_probable_has_a_line_that_says_so(vistazo, folder):
    table = vistazo("classify", folder, "--min-probability", "0.9")
    lines = json_lines(vistazo("classify", folder, "--min-probability", "0.9", "--json"))

    assert (table.exit_code, table.stderr) == (0, "")
    assert table.stdout.count("none is probable enough") == 2
    assert "a.PNG" in table.stdout
    assert [(line["predictions"], line["error"]) for line in lines] == [([], None)] * 2


@pytest.mark.parametrize("least", ["nan", "-0.1", "1.1", "half"])
def test_a_threshold_that_is_no_probability_is_refused_in_one_line(vistazo, folder, server, least):
    result = vistazo("classify", folder, "--min-probability", least)

    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert server.service.requests == []


def test_each_failure_is_one_line_with_the_files_name_and_the_others_are_answered(vistazo, folder, tmp_path):
    (tmp_path / "text.jpg").write_text("bad")
    (tmp_path / "empty").mkdir()
    result = vistazo("classify", tmp_path / "text.jpg", folder, tmp_path / "gone.jpg", tmp_path / "empty")

    assert result.exit_code == 1
    assert "content of a.PNG" in result.stdout
    assert "content of b.jpg" in result.stdout
    assert sorted(result.stderr.splitlines()) == [
        f"Error: {tmp_path}/empty: no images in this folder (.jpg, .jpeg, .png, .webp, .bmp)",
        f"Error: {tmp_path}/gone.jpg: no such file",
        f"Error: {tmp_path}/text.jpg: expected an image, got something else",
    ]


def test_json_tells_failures_too(vistazo, tmp_path):
    (tmp_path / "text.jpg").write_text("bad")
    result = vistazo("classify", "--json", tmp_path / "text.jpg", tmp_path / "gone.jpg")

    assert result.exit_code == 1
    assert [(line["predictions"], line["error"]["code"]) for line in json_lines(result)] == [
        ([], "INVALID_ARGUMENT"),
        ([], "INVALID_ARGUMENT"),
    ]


def test_a_single_bad_file_prints_no_table(vistazo, tmp_path):
    result = vistazo("classify", tmp_path / "gone.jpg")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {tmp_path}/gone.jpg: no such file\n"


def test_names_and_labels_are_printed_as_they_are(vistazo, tmp_path):
    image = tmp_path / "[red]x.jpg"
    image.write_text("[bold]cat 3.5")
    result = vistazo("classify", image, "--top", 1)

    assert "[red]x.jpg" in result.stdout
    assert "[bold]cat 3.5" in result.stdout


def test_answers_of_an_untrained_model_come_with_a_warning(vistazo, folder):
    result = vistazo("classify", folder, "--model", "lenet", "--json")

    assert result.exit_code == 0
    assert len(json_lines(result)) == 2
    assert result.stderr == "Warning: the weights of lenet are untrained: these answers mean nothing.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["classify"], "Missing argument 'IMAGE|FOLDER...'"),
        (["classify", "a.jpg", "--top", "0"], "0 is not in the range x>=1"),
        (["classify", "a.jpg", "--timeout", "0"], "0.0 is not in the range x>0"),
        (["models", "--server", "http://127.0.0.1:1"], "expected the server's address as HOST:PORT"),
        (["models", "--nonsense"], "No such option"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_wrong_usage_exits_with_2(vistazo, arguments, said):
    result = vistazo(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_an_error_of_the_server_is_one_line_and_status_1(vistazo, folder):
    result = vistazo("classify", folder, "--model", "resnet81")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: no model 'resnet81'\n"


@pytest.mark.parametrize(
    "command", [["models"], ["health"], ["classify", __file__]], ids=lambda words: words[0]
)
def test_without_a_server_every_command_says_so(nobody, command):
    result = CliRunner().invoke(main, [*command, "--server", nobody])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: no server at {nobody} (connection refused)\n"


def test_the_timeout_option_is_the_deadline(vistazo, server, folder):
    server.never_answer()
    result = vistazo("classify", folder, "--timeout", "0.2")

    assert result.exit_code == 1
    assert result.stderr == f"Error: no answer from {server.address} within 0.2 s\n"


def test_when_the_server_fails_half_way_what_was_answered_is_shown(vistazo, server, tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.jpg").write_text(f"image {number}")

    def fail_the_second(request, context):
        if len(request.images) < 32:
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    server.service.script = fail_the_second
    result = vistazo("classify", tmp_path)

    assert result.exit_code == 1
    assert "image 31" in result.stdout
    assert "image 32" not in result.stdout
    assert result.stderr == "Error: draining\n"


def test_models_are_listed_with_their_state_and_weights(vistazo):
    result = vistazo("models")

    assert result.exit_code == 0
    assert "resnet18" in result.stdout
    assert "224×224×3" in result.stdout
    assert "untrained" in result.stdout
    assert "independent logits" in result.stdout
    assert "FAILED: checksum does not match" in result.stdout
    assert "images per second" not in result.stdout


def test_untrained_weights_are_red_on_a_terminal(server, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = CliRunner().invoke(main, ["models", "--server", server.address], color=True)

    assert "\x1b[1;31muntrained" in result.stdout


def test_verbose_adds_the_latency_table(vistazo):
    result = vistazo("models", "--verbose")

    assert "images per second" in result.stdout
    assert "100.00" in result.stdout


def test_models_as_json(vistazo):
    lenet, resnet, vgg = json_lines(vistazo("models", "--json"))

    assert (lenet["name"], lenet["weights"], vgg["state"]) == ("lenet", "untrained", "FAILED")
    assert resnet["labels"] == ["cat", "dog"]
    assert [model["scores"] for model in (lenet, resnet)] == ["UNKNOWN", "INDEPENDENT_LOGITS"]
    # A server that is older than the field does not say.
    assert lenet["jpeg_decoding"] == ""
    assert resnet["latencies"] == [{"batch_size": 1, "seconds": 0.02}, {"batch_size": 8, "seconds": 0.1}]


def test_an_empty_server_says_that_it_has_no_models(vistazo, server):
    server.service.models.clear()
    result = vistazo("models")

    assert result.output == f"The server at {server.address} has no models.\n"


@pytest.mark.parametrize(
    ("serving", "printed", "status"), [(True, "SERVING\n", 0), (False, "NOT_SERVING\n", 1)]
)
def test_health_prints_the_state_and_exits_with_it(vistazo, server, serving, printed, status):
    server.set_serving("resnet18", serving=serving)
    result = vistazo("health", "resnet18")

    assert (result.output, result.exit_code) == (printed, status)


def test_health_of_an_unknown_model_is_an_error(vistazo, server):
    result = vistazo("health", "resnet81")

    assert result.exit_code == 1
    assert result.output == f"Error: the server at {server.address} has no model 'resnet81'\n"


def test_health_takes_a_service_by_option_too(vistazo, server):
    server.set_serving("resnet18", serving=True)

    assert vistazo("health", "--service", "resnet18").output == "SERVING\n"
    result = vistazo("health", "--service", "resnet18", "lenet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected MODEL or --service, got both" in result.stderr


def test_health_needs_no_numpy_and_no_server_extra(server):
    server.set_serving("", serving=True)
    script = (
        "import sys\nfrom vistazo_client.cli import main\n"
        "main(['health'], standalone_mode=False)\n"
        "print(sorted({'numpy', 'PIL', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "VISTAZO_SERVER": server.address},
        capture_output=True,
        text=True,
        check=True,
    )

    assert process.stdout == "SERVING\n[]\n"


def test_a_command_tries_again_as_often_as_it_is_told(vistazo, server, folder):
    server.always(grpc.StatusCode.UNAVAILABLE, "draining")

    for retries in (0, 2):
        server.service.requests.clear()
        assert vistazo("classify", folder / "b.jpg", "--retries", retries).exit_code == 1
        assert len(server.service.requests) == 1 + retries


def test_health_waits_when_it_is_told_to(vistazo, server):
    server.set_serving("resnet18", serving=True)

    assert vistazo("health", "resnet18", "--wait", 5).output == "SERVING\n"
    result = vistazo("health", "--wait", 0.2, "other")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: not ready after 0.2 s: ")


def test_the_version_is_the_distributions():
    assert (
        CliRunner().invoke(main, ["--version"]).output == f"vistazo, version {vistazo_client.__version__}\n"
    )


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help(command):
    result = CliRunner().invoke(main, [command, "--help"])

    assert result.exit_code == 0
    assert "--server" in result.stdout
    assert "VISTAZO_SERVER" in result.stdout


def test_ctrl_c_ends_quietly_with_130(server, folder):
    server.never_answer()
    process = subprocess.Popen(
        [*VISTAZO, "classify", "--server", server.address, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not server.service.requests and process.poll() is None:
        server.stopping.wait(0.01)
    process.send_signal(signal.SIGINT)

    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 130


def test_a_reader_that_leaves_early_causes_no_traceback(server, folder):
    for number in range(1000):
        (folder / f"{number}.jpg").write_text("a cat")
    process = subprocess.Popen(
        [*VISTAZO, "classify", "--json", "--server", server.address, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()

    assert said == ""
    assert process.wait(10) == 1


def test_a_progress_bar_shows_on_a_terminal_and_leaves_standard_output_alone(server, folder):
    for number in range(40):
        (folder / f"{number}.jpg").write_text("a cat")
    terminal, stderr = os.openpty()
    process = subprocess.run(
        [*VISTAZO, "classify", "--json", "--server", server.address, str(folder)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "TERM": "xterm"},
        check=True,
    )
    os.close(stderr)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)

    assert "Classifying" in shown
    assert len([json.loads(line) for line in process.stdout.splitlines()]) == 42


def test_a_terminal_without_unicode_gets_a_table_all_the_same(server, folder):
    process = subprocess.run(
        [*VISTAZO, "classify", "--server", server.address, str(folder)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )

    assert b"##########" in process.stdout


# A cat, an accent, a Chinese word, a sign, a combining mark, and what no encoding has.
STRANGE = "\U0001f408 José 猫 ×… e\u0301 \udcff"


@pytest.mark.parametrize(
    "encoding", ["ascii", "latin-1", "cp1252", "cp437", "shift-jis", "utf-8", "ascii:strict"]
)
@pytest.mark.parametrize("command", ["classify", "json", "models", "health", "help"])
def test_every_command_prints_in_any_encoding(server, tmp_path, command, encoding):
    image = tmp_path / f"{STRANGE}.jpg"
    image.write_bytes(STRANGE.encode("utf-8", "replace"))
    arguments = {
        "classify": ["classify", image],
        "json": ["classify", image, "--json"],
        "models": ["models", "--verbose"],
        "health": ["health"],
        "help": ["classify", "--help"],
    }[command]
    address = [] if command == "help" else ["--server", server.address]
    done = subprocess.run(
        [*VISTAZO, *arguments, *address],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    # click prints its help in UTF-8 where the locale says ASCII, which it takes for a mistake.
    by_click = command == "help" and encoding.startswith("ascii")
    text = done.stdout.decode("utf-8" if by_click else encoding.partition(":")[0])
    assert {"classify": "50.0%", "json": "{", "models": "224", "health": "SERVING", "help": "Usage"}[
        command
    ] in text


def test_what_an_encoding_lacks_is_replaced_by_what_is_alike_and_as_wide(server, tmp_path):
    image = tmp_path / "José × 猫.jpg"
    image.write_text("a cat")
    done = subprocess.run(
        [*VISTAZO, "classify", image, "--server", server.address],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert "Jose x ??.jpg" in done.stdout
    assert len({len(line) for line in done.stdout.splitlines()[1:]}) == 1
