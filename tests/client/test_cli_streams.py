"""The `vistazo` command on terminals, pipes and streams that take nothing: never a traceback."""

import json
import os
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from vistazo_client.cli import main
from vistazo_client.cli.tables import harmless

pytestmark = pytest.mark.usefixtures("quick_retries")

VISTAZO = [sys.executable, "-c", "from vistazo_client.cli import main; main(prog_name='vistazo')"]


@pytest.fixture
def vistazo(server):
    """Run `vistazo` in a shell with these redirections; a list of words, and what the shell adds."""

    def run(words, redirection=""):
        command = " ".join(f"'{word}'" for word in [*VISTAZO[:2], VISTAZO[2].replace("'", '"'), *words])
        environment = {**os.environ, "VISTAZO_SERVER": server.address}
        return subprocess.run(
            ["bash", "-c", f"{command} {redirection}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def image(tmp_path):
    image = tmp_path / "a.jpg"
    image.write_text("content")
    return str(image)


@pytest.mark.skipif(sys.platform != "linux", reason="it has no /dev/full")
@pytest.mark.parametrize(
    "words", [["classify"], ["classify", "--json"], ["models"], ["--help"]], ids=" ".join
)
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_an_output_that_cannot_be_written_is_one_line(vistazo, image, words, redirection, reason):
    done = vistazo([*words, image] if "classify" in words else words, redirection)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: the output cannot be written: {reason}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="it has no /dev/full")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_messages_that_nobody_takes_cost_no_answer(vistazo, image, redirection):
    done = vistazo(["classify", "--json", image, "missing.jpg"], redirection)

    first, second = map(json.loads, done.stdout.splitlines())
    assert first["predictions"][0]["label"] == "content"
    assert second["error"]["code"] == "INVALID_ARGUMENT"
    assert (done.returncode, done.stderr) == (1, "")


def test_without_any_stream_the_status_tells(vistazo, image):
    assert vistazo(["classify", image], "<&- >&- 2>&-").returncode == 1
    assert vistazo(["health"], "<&- >/dev/null 2>&-").returncode == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes in folders")
def test_of_a_folder_only_files_are_taken(vistazo, tmp_path):
    (tmp_path / "a.jpg").write_text("content")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "s.jpg"))

    done = vistazo(["classify", "--json", str(tmp_path)])

    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [str(tmp_path / "a.jpg")]


def test_a_link_that_leads_nowhere_is_said(vistazo, tmp_path):
    (tmp_path / "gone.jpg").symlink_to("nothing")
    (tmp_path / "round.jpg").symlink_to("round.jpg")

    done = vistazo(["classify", str(tmp_path)])

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert f"{tmp_path}/gone.jpg: no such file" in done.stderr
    assert f"{tmp_path}/round.jpg: cannot be read (" in done.stderr


def test_recursive_takes_images_at_any_depth_but_in_hidden_folders(vistazo, tmp_path):
    for name in ("z.jpg", "deep/b.jpg", "deep/deeper/a.jpg", ".git/c.jpg", "deep/._d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "deep" / "round").symlink_to(tmp_path, target_is_directory=True)

    done = vistazo(["classify", "--json", "--recursive", str(tmp_path)])

    found = [json.loads(line)["image"] for line in done.stdout.splitlines()]
    assert found == [str(tmp_path / name) for name in ("z.jpg", "deep/b.jpg", "deep/deeper/a.jpg")]
    assert done.returncode == 0


def test_a_name_longer_than_any_file_may_have_is_one_line(vistazo, image):
    done = vistazo(["classify", "--json", "x" * 300 + ".jpg", image])

    assert done.returncode == 1
    assert done.stderr.startswith("Error: xxx")
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("seconds", ["inf", "1e300", "31622400000"])
def test_a_timeout_beyond_all_measure_is_a_long_one(vistazo, image, seconds):
    done = vistazo(["classify", "--json", "--timeout", seconds, image])

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tabby, tabby cat", "tabby, tabby cat"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("\x1b]0;title\x07after", "]0;titleafter"),
        ("\x9b2Jcleared", "2Jcleared"),
        ("one\rtwo\ntwo\u2028three\u2029four", "onetwotwothreefour"),
        ("\u202etac\u2066x", "tacx"),
        ("ñandú 猫 👩\u200d🚀\ufe0f क\u094d\u200dष", "ñandú 猫 👩\u200d🚀\ufe0f क\u094d\u200dष"),
        ("a\ttab", "a tab"),
        ("no\xa0break\u3000space", "no\xa0break\u3000space"),
    ],
)
def test_what_steers_a_terminal_is_taken_out(text, shown):
    assert harmless(text) == shown


def test_labels_and_names_of_a_server_cannot_steer_the_terminal(server, tmp_path):
    image = tmp_path / "a.jpg"
    image.write_text("\x1b]0;owned\x07\x1b[2Jcat\u202e")

    result = CliRunner().invoke(main, ["classify", str(image)], env={"VISTAZO_SERVER": server.address})

    assert result.exit_code == 0
    assert "]0;owned[2Jcat" in result.stdout
    assert not set("\x1b\x07\u202e") & set(result.stdout)


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_gets_none(server, image, variable):
    environment = {"VISTAZO_SERVER": server.address, **variable}
    colours = {**environment, "NO_COLOR": "", "TERM": "xterm"}
    words = ["classify", image, "--model", "lenet"]
    plain = CliRunner().invoke(main, words, env=environment, color=True)
    coloured = CliRunner().invoke(main, words, env=colours, color=True)

    assert "untrained" in plain.stderr
    assert "\x1b" not in plain.stderr
    assert "\x1b[" in coloured.stderr
