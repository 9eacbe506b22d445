"""What is seen in the repository's folder, what counts as a change, and what a caller may name."""

import os

import pytest

from support.tiny import write_files, write_model
from vistazo_server.errors import InvalidRequestError, RepositoryUnreadableError
from vistazo_server.repository.folder import RepositoryFolder, check_model_name


@pytest.fixture
def folder(tmp_path):
    return RepositoryFolder(tmp_path / "models")


def test_models_and_versions_are_seen_and_nothing_else_is(folder):
    write_model(folder.root, "tiny")
    write_model(folder.root, "tiny", version=12)
    write_model(folder.root, "other")
    write_model(folder.root, ".staging-other")
    (folder.root / "README.md").write_text("")
    (folder.root / "empty").mkdir()
    (folder.root / "line\nbreak" / "1").mkdir(parents=True)
    (folder.root / os.fsdecode(b"\xff") / "1").mkdir(parents=True)
    (folder.root / "tiny" / ".3").mkdir()
    (folder.root / "tiny" / "latest").mkdir()
    (folder.root / "tiny" / "4").write_text("")

    seen = folder.scan()

    assert {name: sorted(versions) for name, versions in seen.items()} == {
        "other": ["1"],
        "tiny": ["1", "12"],
    }
    assert folder.scan_model("tiny") == seen["tiny"]
    assert folder.scan_model("nothing") == {}


def touch(version):
    os.utime(version / "manifest.json", ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        write_files,
        touch,
        lambda version: (version / "model.onnx").chmod(0o600),
        lambda version: (version / "model.onnx").unlink(),
        lambda version: (version / "weights.bin").write_bytes(b"1"),
    ],
    ids=["written again", "touched", "other permissions", "a file less", "a file more"],
)
def test_every_change_of_a_versions_files_is_noticed(folder, change):
    version = write_model(folder.root)
    before = folder.scan_model("tiny")
    assert folder.scan_model("tiny") == before

    change(version)

    assert folder.scan_model("tiny") != before


def test_a_hidden_file_beside_the_models_is_no_change(folder):
    version = write_model(folder.root)
    before = folder.scan_model("tiny")
    (version / ".model.onnx.swp").write_text("")

    assert folder.scan_model("tiny") == before


def test_a_link_to_nowhere_is_no_trouble(folder):
    version = write_model(folder.root)
    (version / "weights.bin").symlink_to("missing")
    (folder.root / "gone").symlink_to("nowhere")
    (folder.root / "loop").symlink_to("loop")

    seen = folder.scan()
    assert set(seen["tiny"]) == {"1"}
    assert "gone" not in seen


def test_a_folder_that_is_gone_or_is_none_is_unreadable(folder):
    with pytest.raises(RepositoryUnreadableError, match=r"models cannot be read: No such file"):
        folder.scan()
    folder.root.write_text("")
    with pytest.raises(RepositoryUnreadableError, match=r"models cannot be read: Not a directory"):
        folder.scan_model("tiny")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        ".",
        "..",
        ".staging-tiny",
        "../tiny",
        "/etc",
        "a/b",
        "a\\b",
        "a\0b",
        "line\nbreak",
        "x" * 256,
    ],
)
def test_a_name_that_no_folder_of_the_repository_has_is_refused(name):
    """Triton, L0_input_validation and L0_lifecycle: blank names and path traversal."""
    with pytest.raises(InvalidRequestError, match=r"model: expected (the|a) name") as refused:
        check_model_name(name)

    assert len(str(refused.value)) < 250
    assert str(refused.value).isprintable()


def test_what_a_caller_names_is_looked_up_and_never_joined_to_a_path(folder):
    write_model(folder.root.parent, "outside")
    write_model(folder.root)

    assert folder.scan_model("../outside") == {}
    assert folder.scan_model(str(folder.root.parent / "outside")) == {}
