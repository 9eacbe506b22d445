"""The models follow the folder, and nothing that happens to the folder takes away what serves."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from support.fake_models import FakeModels, Told
from support.serving import until
from support.tiny import tiny_model, write_files, write_model
from vistazo_server.errors import ModelNotFoundError
from vistazo_server.repository import served_model
from vistazo_server.repository.folder import RepositoryFolder, Seen
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.repository.poller import RepositoryPoller
from vistazo_server.repository.versions import VersionPolicy


class Polled:
    """A repository and its poller, which looks when the test says so."""

    def __init__(self, root: Path, models: FakeModels, told: Told) -> None:
        self.models, self.told = models, told
        self.repository = ModelRepository(
            root, load_model=models.load, policy_for=lambda name: VersionPolicy(latest=1), observer=told
        )
        self.readable: list[float] = []
        self.poller = RepositoryPoller(
            RepositoryFolder(root), self.repository, on_readable=self.readable.append
        )

    async def look(self, times: int = 1) -> dict[str, str]:
        """Look, let the changes end, and return what is in the catalog: `name/version` → state."""
        for _ in range(times):
            await self.poller.poll()
            await until(lambda: not self.poller._follows or bool(self.models.waiting))
        return self.catalog()

    def catalog(self) -> dict[str, str]:
        return {f"{one.name}/{one.version}": one.state.value for one in self.repository.entries()}


@pytest.fixture
def root(tmp_path) -> Path:
    write_model(tmp_path / "models")
    return tmp_path / "models"


@asynccontextmanager
async def polled_of(root: Path) -> AsyncIterator[Polled]:
    polled = Polled(root, FakeModels(), Told())
    async with polled.repository as repository:
        repository.find(may_be_empty=True)
        await repository.start()
        yield polled
        await repository.stop_changes()


@pytest.fixture
async def polled(root) -> AsyncIterator[Polled]:
    async with polled_of(root) as polled:
        yield polled


async def test_nothing_happens_while_nothing_changes(polled):
    assert await polled.look(5) == {"tiny/1": "ready"}
    assert len(polled.models.opened) == 1


async def test_new_models_and_versions_are_loaded_and_removed_ones_unloaded(root, polled):
    """L0_lifecycle test_dynamic_model_load_unload and test_dynamic_version_load_unload, polling."""
    write_model(root, version=2)
    write_model(root, "other")
    assert await polled.look(2) == {"other/1": "ready", "tiny/2": "ready"}

    shutil.rmtree(root / "tiny" / "2")
    assert await polled.look(2) == {"other/1": "ready", "tiny/1": "ready"}

    shutil.rmtree(root / "tiny")
    assert await polled.look(2) == {"other/1": "ready"}
    with pytest.raises(ModelNotFoundError, match="'tiny' is not in the repository; it has other"):
        polled.repository.lease("tiny")
    assert polled.told.gone == ["tiny"]
    assert polled.models.open_versions == [("other", "1")]


async def test_the_same_version_exported_again_is_swapped(root, polled):
    """L0_lifecycle test_dynamic_model_modify."""
    await polled.look(2)
    before = polled.models.opened[0].sha256
    write_files(root / "tiny" / "1", model=tiny_model(divisor=20))
    await polled.look(2)

    with polled.repository.lease("tiny") as classifier:
        assert classifier.sha256 != before
    assert len(polled.models.opened) == 2


async def test_files_that_say_the_same_are_not_loaded_again(root, polled):
    await polled.look(2)
    write_files(root / "tiny" / "1")
    os.utime(root / "tiny" / "1" / "manifest.json")

    assert await polled.look(3) == {"tiny/1": "ready"}
    assert len(polled.models.opened) == 1
    assert polled.told.loads == [("tiny", True)]


async def test_a_folder_that_is_being_copied_is_left_alone_until_it_is_whole(root, polled):
    await polled.look(2)
    source = write_model(root.parent / "elsewhere", model=tiny_model(divisor=20))
    target = root / "tiny" / "2"
    target.mkdir()
    data = (source / "model.onnx").read_bytes()
    for at in range(0, len(data), len(data) // 5 + 1):
        with (target / "model.onnx").open("ab") as file:
            file.write(data[at : at + len(data) // 5 + 1])
        assert await polled.look() == {"tiny/1": "ready"}
    shutil.copy(source / "manifest.json", target / "manifest.json")
    assert await polled.look() == {"tiny/1": "ready"}

    assert await polled.look() == {"tiny/2": "ready"}
    assert polled.told.loads == [("tiny", True), ("tiny", True)]


async def test_a_model_that_is_taken_away_and_put_back_serves_all_the_time(root, polled):
    await polled.look(2)
    (root / "tiny").rename(root / ".tiny")
    write_model(root, "other")  # else the repository would be empty
    assert (await polled.look())["tiny/1"] == "ready"
    (root / ".tiny").rename(root / "tiny")

    assert (await polled.look(2))["tiny/1"] == "ready"
    assert polled.models.opened[0].is_open


async def test_hidden_folders_are_never_taken(root, polled):
    write_model(root, ".staging-new")
    write_model(root / "tiny", ".staging-2")

    assert await polled.look(3) == {"tiny/1": "ready"}


async def test_a_version_that_fails_leaves_the_old_one_and_is_not_tried_until_its_files_change(root, polled):
    """L0_lifecycle test_model_reload_fail, polling."""
    folder = write_model(root, version=2)
    (folder / "model.onnx").write_bytes(b"")
    with capture_logs() as logs:
        assert await polled.look(5) == {"tiny/1": "ready", "tiny/2": "failed"}

    assert [(log["event"], log["version"]) for log in logs] == [("model_failed", "2")]
    assert polled.told.loads == [("tiny", True), ("tiny", False)]
    assert polled.models.opened[0].is_open
    write_files(folder)
    assert await polled.look(2) == {"tiny/2": "ready"}


async def test_a_version_that_failed_is_tried_again_after_a_while_and_its_reason_logged_once(
    root, polled, monkeypatch
):
    monkeypatch.setattr(served_model, "FIRST_RETRY_SECONDS", 0.0)
    polled.models.broken["tiny", "2"] = "no memory"
    write_model(root, version=2)
    with capture_logs() as logs:
        assert await polled.look(5) == {"tiny/1": "ready", "tiny/2": "failed"}
        assert len(polled.told.loads) > 3
        polled.models.broken["tiny", "2"] = "no device"
        await polled.look(3)

    assert [log["reason"] for log in logs] == ["no memory", "no device"]
    polled.models.broken.clear()
    assert await polled.look() == {"tiny/2": "ready"}


def unreadable(root: Path) -> None:
    root.rename(root.parent / "away")


def empty(root: Path) -> None:
    """What an unmounted disk leaves."""
    unreadable(root)
    root.mkdir()


def no_folder(root: Path) -> None:
    unreadable(root)
    root.write_text("")


@pytest.mark.parametrize("lose", [unreadable, empty, no_folder])
async def test_a_repository_that_is_lost_unloads_nothing_and_is_followed_again_when_it_is_back(
    root, polled, lose
):
    await polled.look(2)
    lose(root)
    with capture_logs() as logs:
        assert await polled.look(5) == {"tiny/1": "ready"}
    assert [log["event"] for log in logs] == ["repository_unreadable"]
    assert polled.readable[-1] == 0

    if root.is_dir():
        root.rmdir()
    root.unlink(missing_ok=True)
    (root.parent / "away").rename(root)
    write_model(root, version=2)
    with capture_logs() as logs:
        assert await polled.look(2) == {"tiny/2": "ready"}
    assert logs[0]["event"] == "repository_readable"
    assert polled.readable[-1] == 1


async def test_a_repository_that_goes_while_a_version_loads_leaves_the_old_one(root, polled):
    await polled.look(2)
    polled.models.gate.clear()
    write_model(root, version=2)
    assert await polled.look(2) == {"tiny/1": "ready", "tiny/2": "loading"}
    unreadable(root)
    assert await polled.look(3) == {"tiny/1": "ready", "tiny/2": "loading"}
    polled.models.gate.set()

    await until(lambda: polled.catalog() == {"tiny/2": "ready"})


async def test_a_model_that_cannot_be_read_goes_on_serving_and_is_said_once(root, polled, monkeypatch):
    await polled.look(2)
    look = RepositoryFolder.look
    unreadable = Seen({"tiny": None}, ())
    monkeypatch.setattr(RepositoryFolder, "look", lambda folder: look(folder) and unreadable)
    with capture_logs() as logs:
        assert await polled.look(4) == {"tiny/1": "ready"}

    assert [(log["event"], log["model"]) for log in logs] == [("model_unreadable", "tiny")]


async def test_one_models_slow_end_does_not_hold_up_the_others(root, polled):
    """L0_lifecycle test_model_availability_on_reload_2."""
    await polled.look(2)
    with polled.repository.lease("tiny"):
        write_model(root, version=2)
        write_model(root, "other")
        for _ in range(4):
            await polled.poller.poll()
        await until(
            lambda: polled.catalog() == {"other/1": "ready", "tiny/1": "unloading", "tiny/2": "ready"}
        )
    await until(lambda: polled.catalog() == {"other/1": "ready", "tiny/2": "ready"})


async def test_a_bug_in_one_look_does_not_end_the_watching(polled, monkeypatch):
    looks = 0

    async def poll() -> None:
        nonlocal looks
        looks += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr(polled.poller, "poll", poll)
    with capture_logs() as logs:
        watching = asyncio.create_task(polled.poller.run(0.001))
        await until(lambda: looks >= 3)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    assert {log["event"] for log in logs} == {"poll_crashed"}


async def test_a_repository_that_is_empty_at_the_start_is_followed(tmp_path):
    async with polled_of(tmp_path) as polled:
        assert await polled.look(2) == {}
        assert polled.readable[-1] == 1
        write_model(tmp_path)
        assert await polled.look(2) == {"tiny/1": "ready"}
