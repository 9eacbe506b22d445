"""Whatever is in a repository is served or named, with what to do; a system's own files are neither."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.fake_models import FakeModels, catalog, repository_of
from support.tiny import tiny_model, write_model
from vistazo_server.errors import ModelNotFoundError, StartupError
from vistazo_server.repository.layout import MOST_STRAYS

GRAPH = tiny_model().SerializeToString()
BEYOND_INT64 = str(2**63)


def put(path: Path, content: bytes = GRAPH) -> Path:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


async def told_of(root: Path) -> tuple[dict[str, str], list[str]]:
    """Return, without the path above the repository, what serves and what the log warns of."""
    with capture_logs() as logs:
        async with repository_of(root, FakeModels(), policy="all", start=False) as repository:
            served = {f"{name}/{version}": state for (name, version), state in catalog(repository).items()}
    warned = [
        f"{log['path']}: {log['reason']}; {log['to_serve_it']}"
        for log in logs
        if log["event"] == "not_served"
    ]
    return served, [line.replace(f"{root}/", "") for line in warned]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "birds/model.onnx",
            "it has no version folder, expected birds/1/model.onnx; make the folder birds/1",
        ),
        (
            "birds/resnet.onnx",
            "it has no version folder, expected birds/1/model.onnx; make the folder birds/1",
        ),
        ("birds/model.pt", "PyTorch is not served, expected birds/1/model.onnx; make a version of it with"),
        ("birds/model.plan", "TensorRT is not served, expected birds/1/model.onnx; "),
        ("birds.onnx", "a model is a folder, expected birds/1/model.onnx; move it there, or import it with"),
        ("birds/00000001/model.onnx", "expected 1; rename it to birds/1"),
        ("birds/v3/model.onnx", "expected 3; rename it to birds/3"),
        (
            "birds/1.0/model.onnx",
            "a version's name is a whole number from 1 to 9223372036854775807, got 1.0; ",
        ),
        ("birds/latest/model.onnx", "whole number from 1 to 9223372036854775807, got latest; "),
        ("birds/0/model.onnx", "whole number from 1 to 9223372036854775807, got 0; "),
        ("birds/-1/model.onnx", "whole number from 1 to 9223372036854775807, got -1; "),
        ("birds/１/model.onnx", "whole number from 1 to 9223372036854775807, got １; "),
        (f"birds/{BEYOND_INT64}/model.onnx", f"9223372036854775807, got {BEYOND_INT64}; "),
        ("birds/best/model.onnx", "whole number from 1 to 9223372036854775807, got best; "),
        ("birds/1", "a version is a folder, and this is a file; remove it"),
        ("birds/notes.txt", "it has no version folder, expected birds/1/model.onnx; it has notes.txt; "),
        (
            "all/birds/1/model.onnx",
            "it looks like a repository itself, with the models birds; serve it with ",
        ),
        ("a\nb/1/model.onnx", "a model's name has to be printable UTF-8, and not blank; rename it"),
        (os.fsdecode(b"\xff/1/model.onnx"), "a model's name has to be printable UTF-8, and not blank; "),
        ("  /1/model.onnx", "a model's name has to be printable UTF-8, and not blank; rename it"),
    ],
)
async def test_what_is_not_served_is_named_with_what_to_do(tmp_path, path, line):
    put(tmp_path / path)
    write_model(tmp_path)

    served, warned = await told_of(tmp_path)

    assert served == {"tiny/1": "loading"}
    assert len(warned) == 1
    assert line in warned[0]
    assert warned[0].isprintable()


async def test_a_folder_of_the_hugging_face_hub_is_named_with_the_command_that_imports_it(tmp_path):
    put(tmp_path / "vit/onnx/model.onnx")
    put(tmp_path / "vit/config.json", b"{}")
    write_model(tmp_path)

    _, (line,) = await told_of(tmp_path)

    assert line.startswith("vit: a folder of the Hugging Face hub; ")
    assert line.endswith(f"; import it with `vistazo import vit --models {tmp_path}`")


async def test_two_folders_of_one_number_are_both_named_and_the_version_serves(tmp_path):
    put(tmp_path / "birds/1/model.onnx")
    put(tmp_path / "birds/01/model.onnx")

    served, (line,) = await told_of(tmp_path)

    assert served == {"birds/1": "loading"}
    assert line.startswith("birds/01: ")
    assert "there are two of that number, this and birds/1, which is the one served" in line


async def test_of_two_folders_that_only_stand_for_a_number_none_is_chosen(tmp_path):
    put(tmp_path / "birds/01/model.onnx")
    put(tmp_path / "birds/v1/model.onnx")

    served, warned = await told_of(tmp_path)

    assert served == {}
    assert [line[: line.index(":")] for line in warned] == ["birds/01", "birds/v1"]
    assert all("there are two of that number" in line for line in warned)


async def test_a_graph_beside_the_versions_is_named_and_they_serve(tmp_path):
    put(tmp_path / "birds/1/model.onnx")
    put(tmp_path / "birds/model.onnx")

    served, (line,) = await told_of(tmp_path)

    assert served == {"birds/1": "loading"}
    assert line.startswith("birds/model.onnx: it lies beside the version folders")


async def test_the_largest_version_of_int64_is_served(tmp_path):
    put(tmp_path / f"birds/{2**63 - 1}/model.onnx")

    assert await told_of(tmp_path) == ({f"birds/{2**63 - 1}": "loading"}, [])


async def test_links_to_nothing_are_named_and_links_to_models_serve(tmp_path):
    put(tmp_path / "birds/5/model.onnx")
    (tmp_path / "copy").symlink_to("birds")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "birds/6").symlink_to("unmounted")
    (tmp_path / "birds/latest").symlink_to("5")

    served, warned = await told_of(tmp_path)

    assert served == {"birds/5": "loading", "copy/5": "loading"}
    assert {line[: line.index(";")] for line in warned} == {
        "gone: a link to 'nowhere', which is not there",
        "loop: a link to 'loop', which is not there",
        "birds/6: a link to 'unmounted', which is not there",
        "copy/6: a link to 'unmounted', which is not there",
        "birds/latest: a link to '5'",
        "copy/latest: a link to '5'",
    }


async def test_hidden_names_and_those_of_a_system_are_silent_at_every_level(tmp_path):
    version = write_model(tmp_path)
    for place in (tmp_path, tmp_path / "tiny", version):
        for folder in (".staging-x", "._x", "@eaDir", "lost+found", "__MACOSX", "7.part", "7.tmp"):
            put(place / folder / "1/model.onnx")
        for file in (".DS_Store", "._model.onnx", "Thumbs.db", "model.onnx.part", "README.md"):
            put(place / file)

    assert await told_of(tmp_path) == ({"tiny/1": "loading"}, [])


async def test_very_many_strays_are_told_of_by_the_first(tmp_path):
    for number in range(MOST_STRAYS * 3):
        put(tmp_path / f"birds/v1.{number}/model.onnx")

    _, warned = await told_of(tmp_path)

    assert len(warned) == MOST_STRAYS + 1
    assert any(f"more than {MOST_STRAYS} things there are not served" in line for line in warned)


def one_model(root: Path) -> Path:
    return write_model(root).parent


def flat_model(root: Path) -> Path:
    return put(root / "birds/model.onnx").parent


def hub_folder(root: Path) -> Path:
    put(root / "vit/config.json", b"{}")
    return put(root / "vit/onnx/model.onnx").parent.parent


def link_to_nothing(root: Path) -> Path:
    (root / "current").symlink_to("unmounted")
    return root / "current"


def link_to_itself(root: Path) -> Path:
    (root / "current").symlink_to("current")
    return root / "current"


def linked_model(root: Path) -> Path:
    (root / "elsewhere").mkdir()
    (root / "elsewhere/current").symlink_to(one_model(root))
    return root / "elsewhere/current"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            one_model,
            "has no <name>/<version>/ folder; it is one model itself, with version 1: say --models ROOT",
        ),
        (linked_model, "; it is one model itself, with version 1: say --models ROOT"),
        (
            lambda root: one_model(root) / "1",
            "; it is one version of a model itself, with manifest.json, model.onnx: say --models ROOT",
        ),
        (flat_model, "; it is a model itself, without a version folder: make the folder ROOT/birds/1, "),
        (hub_folder, "; it is a folder of the Hugging Face hub: import it with `vistazo import ROOT/vit "),
        (
            lambda root: one_model(root) / "1/model.onnx",
            "is no folder; it is one file, and a repository is <name>/<version>/model.onnx: import it with ",
        ),
        (lambda root: one_model(root) / "1/manifest.json", "is no folder; it is a file; make one with "),
        (link_to_nothing, "is no folder; it is a link to 'unmounted', which is not there; make one with "),
        (link_to_itself, "is no folder; it is a link that leads back to itself"),
        (
            lambda root: one_model(root / "a/models").parent.parent,
            "it looks like a repository itself, with the models tiny; serve it with --models ROOT/a/models",
        ),
    ],
)
async def test_a_path_that_is_no_repository_says_what_it_is_and_what_to_say(tmp_path, make, message):
    root = make(tmp_path)
    with pytest.raises(StartupError) as failed:
        await repository_find(root)

    assert message in str(failed.value).replace(str(tmp_path), "ROOT")


def is_same(path: str, other: Path) -> bool:
    return Path(path).samefile(other)


async def repository_find(root: Path) -> None:
    async with repository_of(root, FakeModels(), start=False) as repository:
        repository.find(may_be_empty=False)


@pytest.mark.parametrize("relative", [".", "tiny", "./tiny/../tiny"])
async def test_the_folder_above_is_named_for_relative_paths_too(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(one_model(tmp_path) if relative == "." else one_model(tmp_path).parent)
    with pytest.raises(StartupError) as failed:
        await repository_find(Path(relative))

    above = str(failed.value).rpartition("--models ")[2]
    assert is_same(above, tmp_path)


async def test_a_server_that_waits_for_models_warns_of_a_path_that_is_no_repository(tmp_path):
    with capture_logs() as logs:
        async with repository_of(one_model(tmp_path), FakeModels(), start=False):
            pass

    (line,) = logs
    assert (line["event"], line["path"]) == ("not_served", str(tmp_path / "tiny"))
    assert line["to_serve_it"] == f"it is one model itself, with version 1: say --models {tmp_path}"


def flat(root: Path) -> None:
    put(root / "birds/model.onnx")


def padded(root: Path) -> None:
    put(root / "birds/01/model.onnx")


@pytest.mark.parametrize("lay_out", [flat, padded])
async def test_who_asks_for_a_model_that_is_laid_out_otherwise_is_told_so(
    tmp_path, lay_out: Callable[[Path], None]
):
    lay_out(tmp_path)
    async with repository_of(tmp_path, FakeModels()) as repository:
        with pytest.raises(ModelNotFoundError) as failed:
            await repository.load("birds")
        with pytest.raises(StartupError) as not_started:
            repository.find(["birds"], may_be_empty=True)

    for error in (failed, not_started):
        assert f"{tmp_path}/birds/" in str(error.value)
        assert "expected " in str(error.value)
