"""The README is short, and what it says is so: layout, Pythons, figures, links; and its example runs."""

import asyncio
import json
import re
import sys
import tomllib
from functools import partial

import pytest
from PIL import Image

from support.documents import PAGES, README, ROOT, blocks, commands, name_of, text_of
from support.serving import serving
from support.tiny import write_model

TEXT = text_of(README)
MOST_LINES = 200

# Where the first blocks of Python are examples that run against a server with these models.
WITH_EXAMPLE = [README, ROOT / "docs" / "index.md", ROOT / "docs" / "guides" / "python-client.md"]


def test_it_can_be_read_in_a_few_minutes():
    assert len(TEXT.splitlines()) <= MOST_LINES


def test_no_placeholder_was_left_behind():
    assert "@" * 2 not in TEXT


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent.parent.name for path in ROOT.glob("*/vistazo_*/__init__.py")),
)
def test_the_layout_names_every_package(folder):
    assert re.search(rf"^{folder}/ +\S", TEXT, re.MULTILINE)


def test_the_layout_names_no_folder_that_is_not_there():
    (layout,) = [block for block in blocks(README, "") if "server/" in block]
    folders = re.findall(r"^(\w+)/", layout, re.MULTILINE)

    assert folders
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


@pytest.mark.parametrize(
    "room", sorted(path.parent.name for path in (ROOT / "server" / "vistazo_server").glob("*/__init__.py"))
)
def test_every_room_of_the_server_is_in_the_layout_and_in_how_it_works(room):
    assert f"{room}/" in TEXT
    assert f"| `{room}` |" in text_of(ROOT / "docs" / "how" / "index.md")


@pytest.mark.parametrize(
    "room",
    sorted(
        path.parent.relative_to(ROOT).as_posix()
        for part in ("server", "export")
        for path in (ROOT / part / f"vistazo_{part}").glob("*/__init__.py")
    ),
)
def test_the_table_of_the_house_names_every_room(room):
    package, _, name = room.rpartition("/")
    text = text_of(ROOT / "CONTRIBUTING.md")

    assert f"`{package}`" in text
    assert re.search(rf"^\|.*`{name}`", text, re.MULTILINE)


def test_the_pythons_of_the_package_are_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    classified = {entry.rpartition(" ")[2] for entry in project["classifiers"] if ":: Python :: 3." in entry}

    for version in classified | {"3.11", "3.12", "3.13"}:
        assert version in TEXT


def test_the_figures_are_those_that_were_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    import benchmarks_page

    figures = json.loads((ROOT / "bench" / "results.json").read_text(encoding="utf-8"))["figures"]
    measured = {
        f"| {figure['name']} | {benchmarks_page.measured(figure)} | {benchmarks_page.target(figure)} "
        f"| {benchmarks_page.verdict(figure)} |"
        for figure in figures
    }
    shown = re.findall(r"^\|.*\| (?:yes|\*\*no\*\*) \|$", TEXT, re.MULTILINE)
    sys.modules.pop("benchmarks_page")

    assert shown
    assert set(shown) <= measured


def test_how_many_figures_met_their_target_is_said():
    figures = json.loads((ROOT / "bench" / "results.json").read_text(encoding="utf-8"))["figures"]

    assert f"Of {len(figures)} figures, {sum(figure['met'] for figure in figures)} met their target" in TEXT


def test_the_machine_is_the_one_that_was_measured():
    machine = json.loads((ROOT / "bench" / "results.json").read_text(encoding="utf-8"))["machine"]
    runtime = ".".join(machine["versions"]["onnxruntime"].split(".")[:2])

    assert f"{machine['cores']} shared cores ({machine['cpu']}) with ONNX Runtime {runtime}." in TEXT


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name in ("guides", "run", "how")], ids=name_of
)
def test_every_page_that_explains_something_is_one_click_away(page):
    assert f"]({name_of(page)})" in TEXT


@pytest.mark.parametrize("target", ["test", "test-slow", "test-python", "demo", "bench", "docs"])
def test_the_commands_to_begin_with_are_shown(target):
    assert any(line.split()[:2] == ["make", target] for line in commands(README))


@pytest.mark.parametrize("document", WITH_EXAMPLE, ids=name_of)
async def test_the_example_of_the_client_runs(document, tmp_path, capsys):
    for model in ("resnet18", "efficientnet_lite0"):
        write_model(tmp_path / "models", model)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "cat.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "text.jpg")
    code = blocks(document, "python")[0]

    async with serving(tmp_path / "models") as server:
        here = code.replace("127.0.0.1:8001", server.address)
        for name in ("cat.png", "text.jpg"):
            here = here.replace(name, str(tmp_path / name))
        await asyncio.to_thread(partial(exec, here, {}))

    assert "%  red" in capsys.readouterr().out
