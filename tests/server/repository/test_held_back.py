"""A version whose manifest has not arrived never takes the place of one that has its manifest."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.fake_models import FakeModels, Told, answering, catalog, repository_of
from support.serving import until
from support.tiny import tiny_model, write_model
from vistazo_server.repository.folder import RepositoryFolder
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.repository.poller import RepositoryPoller
from vistazo_server.repository.versions import VersionPolicy


class Polled:
    """A repository and its poller, which looks when the test says so."""

    def __init__(self, root: Path, policy: str) -> None:
        self.repository = ModelRepository(
            root,
            load_model=FakeModels().load,
            policy_for=lambda name: VersionPolicy.parse(policy),
            observer=Told(),
        )
        self._poller = RepositoryPoller(
            RepositoryFolder(root), self.repository, on_readable=lambda value: None
        )

    async def look(self, times: int = 2) -> dict[str, str]:
        """Look, let the changes end, and return what is in the catalog: version → state."""
        for _ in range(times):
            await self._poller.poll()
            await until(lambda: not self._poller._follows)
        return {version: state for (_, version), state in catalog(self.repository).items()}


@asynccontextmanager
async def polled_of(root: Path, policy: str = "latest:1") -> AsyncIterator[Polled]:
    polled = Polled(root, policy)
    async with polled.repository as repository:
        repository.find(may_be_empty=True)
        await repository.start()
        await polled.look(1)
        yield polled
        await repository.stop_changes()


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository with version 1 of `tiny`, an image model."""
    write_model(tmp_path / "models")
    return tmp_path / "models"


def write_bare(root: Path, version: int = 2, *, divisor: float = 10) -> Path:
    """Write a version without a manifest, and return its folder."""
    folder = write_model(root, version=version, model=tiny_model(divisor=divisor))
    (folder / "manifest.json").rename(root / f"manifest-{version}.json")
    return folder


def deliver_manifest(root: Path, version: int = 2) -> None:
    (root / f"manifest-{version}.json").rename(root / "tiny" / str(version) / "manifest.json")


def held_back(logs: list[dict[str, object]]) -> list[object]:
    return [log["version"] for log in logs if log["event"] == "version_held_back"]


@pytest.mark.parametrize("policy", ["latest:1", "latest:2", "all", "1,2"])
async def test_a_copy_that_stands_still_before_its_manifest_is_not_taken_until_it_comes(root, policy):
    async with polled_of(root, policy) as polled:
        folder = write_bare(root)
        with capture_logs() as logs:
            assert await polled.look(6) == {"1": "ready"}
            assert answering(polled.repository) == "1"
        deliver_manifest(root)
        await polled.look()

        assert answering(polled.repository) == "2"
    assert held_back(logs) == ["2"]
    (line,) = logs
    assert line["log_level"] == "warning"
    assert line["path"] == str(folder)
    assert line["reason"] == "no manifest.json, and it would take the place of version 1 with one"
    assert "vistazo import --preprocess none" in line["to_serve_it"]


async def test_files_that_come_one_by_one_with_stops_never_take_the_image_model_away(root):
    complete = write_model(root.parent / "aside", model=tiny_model(divisor=20))
    async with polled_of(root) as polled:
        target = root / "tiny" / "2"
        target.mkdir()
        assert (await polled.look(3))["1"] == "ready"
        for name in ("weights.bin", "model.onnx"):
            shutil.copy(complete / "model.onnx", target / name)
            assert await polled.look(3) == {"1": "ready"}
        shutil.copy(complete / "manifest.json", target)

        assert await polled.look() == {"2": "ready"}


async def test_a_manifest_before_half_a_graph_fails_and_is_taken_when_it_is_whole(root):
    complete = write_model(root.parent / "aside", model=tiny_model(divisor=20))
    content = (complete / "model.onnx").read_bytes()
    async with polled_of(root) as polled:
        target = root / "tiny" / "2"
        target.mkdir()
        shutil.copy(complete / "manifest.json", target)
        assert await polled.look(3) == {"1": "ready", "2": "failed"}
        (target / "model.onnx").write_bytes(content[: len(content) // 2])
        assert await polled.look(3) == {"1": "ready", "2": "failed"}
        assert answering(polled.repository) == "1"
        (target / "model.onnx").write_bytes(content)

        assert await polled.look() == {"2": "ready"}


async def test_an_image_model_that_loses_its_manifest_goes_on_serving_as_it_was(root):
    async with polled_of(root) as polled:
        before = polled.repository.lease("tiny").spec
        (root / "tiny/1/manifest.json").unlink()
        (root / "tiny/1/model.onnx").write_bytes(tiny_model(divisor=20).SerializeToString())
        with capture_logs() as logs:
            assert await polled.look(4) == {"1": "ready"}

        assert polled.repository.lease("tiny").spec == before
    assert held_back(logs) == ["1"]


async def test_the_image_model_stays_when_it_is_removed_before_the_manifest_of_the_next_comes(root):
    async with polled_of(root) as polled:
        write_bare(root)
        await polled.look()
        shutil.rmtree(root / "tiny/1")
        assert await polled.look(4) == {"1": "ready"}
        deliver_manifest(root)

        assert await polled.look() == {"2": "ready"}


async def test_a_version_that_is_held_back_and_removed_is_forgotten_and_told_again_when_it_returns(root):
    async with polled_of(root) as polled:
        with capture_logs() as logs:
            folder = write_bare(root)
            await polled.look(3)
            shutil.rmtree(folder)
            assert await polled.look(3) == {"1": "ready"}
            write_bare(root)
            assert await polled.look(3) == {"1": "ready"}

    assert held_back(logs) == ["2", "2"]


async def test_after_a_restart_it_is_held_back_as_before(root):
    write_bare(root)
    with capture_logs() as logs:
        async with polled_of(root) as polled:
            assert await polled.look(3) == {"1": "ready"}

    assert held_back(logs) == ["2"]


async def test_who_asks_for_the_load_gets_the_version_without_a_manifest(root):
    write_bare(root)
    async with repository_of(root, FakeModels()) as repository:
        assert answering(repository) == "1"
        await repository.load("tiny")
        assert answering(repository) == "2"


async def test_versions_without_manifests_follow_one_another_as_ever(root):
    shutil.rmtree(root / "tiny")
    write_bare(root, 1)
    with capture_logs() as logs:
        async with polled_of(root) as polled:
            write_bare(root, 2, divisor=20)
            assert await polled.look() == {"2": "ready"}
            deliver_manifest(root, 1)
            assert await polled.look() == {"2": "ready"}

    assert held_back(logs) == []


async def test_a_manifest_that_goes_between_the_look_and_the_load_is_not_done_without(root):
    async with polled_of(root) as polled:
        write_model(root, version=2, model=tiny_model(divisor=20))
        found = RepositoryFolder(root).scan_model("tiny")
        (root / "tiny/2/manifest.json").unlink()
        await polled.repository.follow("tiny", found)

        assert answering(polled.repository) == "1"
        reason = polled.repository.entry("tiny", "2").reason
    assert reason.endswith("manifest.json is missing")


async def test_an_image_model_takes_the_place_of_one_of_tensors(root):
    (root / "tiny/1/manifest.json").unlink()
    async with polled_of(root) as polled:
        write_model(root, version=2)
        assert await polled.look() == {"2": "ready"}


async def test_a_listed_version_alone_serves_without_a_manifest(root):
    write_bare(root)
    async with polled_of(root, "2") as polled:
        assert await polled.look() == {"2": "ready"}


async def test_what_lies_oddly_is_told_once_it_has_lain_so_for_two_looks_and_once_only(root):
    async with polled_of(root) as polled:
        with capture_logs() as logs:
            write_model(root, version=2).rename(root / "tiny/v2")
            await polled.look(1)
            assert logs == []
            await polled.look(5)

    assert [(log["event"], log["path"]) for log in logs] == [("not_served", str(root / "tiny/v2"))]


async def test_what_was_told_at_the_start_is_not_told_again_by_looking(root):
    write_model(root, version=2).rename(root / "tiny/v2")
    with capture_logs() as logs:
        async with polled_of(root) as polled:
            await polled.look(5)

    assert [log["event"] for log in logs if log["log_level"] == "warning"] == ["not_served"]


@pytest.mark.parametrize("name", [".nfs0001", ".DS_Store", "@eaDir", "model.onnx.part"])
async def test_what_a_system_writes_into_a_version_is_no_change_of_it(root, name):
    folder = RepositoryFolder(root)
    before = folder.scan()
    (root / "tiny/1" / name).mkdir()

    assert folder.scan() == before


async def test_weights_in_a_folder_of_their_own_are_part_of_a_version(root):
    weights = root / "tiny/1/weights/w.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"1234")
    folder = RepositoryFolder(root)
    before = folder.scan()
    with weights.open("r+b") as file:
        file.write(b"4321")
    os.utime(weights, ns=(1, 1))

    assert folder.scan() != before


async def test_a_config_is_part_of_versions_without_a_manifest_and_of_no_others(root):
    bare = write_bare(root)
    folder = RepositoryFolder(root)
    before = folder.scan_model("tiny")
    (bare.parent / "config.pbtxt").write_text("max_batch_size: 4")
    after = folder.scan_model("tiny")

    assert after["1"] == before["1"]
    assert after["2"] != before["2"]
