"""Where a version that should serve cannot be loaded, the next lower one that can serves in its place."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from support.fake_models import FakeModels, Told, answering, catalog, repository_of
from support.serving import until
from support.tiny import tiny_model, write_files, write_model
from vistazo_server.errors import DrainingError, ModelControlError, ModelNotReadyError, StartupError
from vistazo_server.repository import served_model
from vistazo_server.repository.folder import RepositoryFolder, Seen
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.repository.poller import RepositoryPoller


@pytest.fixture
def root(tmp_path) -> Path:
    write_model(tmp_path / "models")
    return tmp_path / "models"


def states(repository: ModelRepository) -> dict[str, str]:
    """Return the state of each version of the model `tiny`."""
    return {version: state for (_, version), state in catalog(repository).items()}


def publish(root: Path, *versions: int) -> None:
    for version in versions:
        write_model(root, version=version)


def with_broken(*versions: int) -> FakeModels:
    """Return models of which these versions cannot be loaded."""
    models = FakeModels()
    models.broken = {("tiny", str(version)): f"broken {version}" for version in versions}
    return models


def tries(told: Told) -> tuple[int, int]:
    """Return how many loads succeeded, and how many failed."""
    outcomes = [ok for _, ok in told.loads]
    return outcomes.count(True), outcomes.count(False)


class Polled:
    """A repository that follows its folder when the test says so."""

    def __init__(self, root: Path, repository: ModelRepository, models: FakeModels) -> None:
        self.repository = repository
        self._models = models
        self._poller = RepositoryPoller(RepositoryFolder(root), repository, on_readable=lambda _: None)

    async def look(self, times: int = 2) -> dict[str, str]:
        """Look, let the changes end or wait, and return the states; a change counts at the second look."""
        for _ in range(times):
            await self._poller.poll()
            await until(lambda: not self._poller._follows or bool(self._models.waiting))
        return states(self.repository)


@asynccontextmanager
async def polled_of(
    root: Path, models: FakeModels, *, policy: str = "latest:1", told: Told | None = None
) -> AsyncIterator[Polled]:
    async with repository_of(
        root, models, policy=policy, told=told, start=False, explicit=False
    ) as repository:
        try:
            await repository.start()
        except StartupError:
            assert models.broken, "else something should serve"
        polled = Polled(root, repository, models)
        await polled.look()
        yield polled
        await repository.stop_changes()


# The start


async def test_after_a_restart_the_version_below_a_broken_one_serves_and_that_is_said(root):
    publish(root, 2)
    models, told = with_broken(2), Told()
    with capture_logs() as logs:
        async with repository_of(root, models, told=told) as repository:
            assert states(repository) == {"1": "ready", "2": "failed"}
            assert answering(repository) == repository.entry("tiny").version == "1"
            assert repository.entry("tiny", "2").reason == "broken 2"
            with pytest.raises(ModelNotReadyError, match="version 2 of model tiny failed to load: broken 2"):
                repository.lease("tiny", "2")
            index = [(row.version, row.state.value, row.reason) for row in await repository.index()]

    assert index == [("1", "ready", ""), ("2", "unavailable", "broken 2")]
    assert told.loads == [("tiny", False), ("tiny", True)]
    said = [log for log in logs if log["event"] == "lower_version_serves"]
    assert [(log["model"], log["version"], log["instead_of"]) for log in said] == [("tiny", "1", ["2"])]
    assert [log["event"] for log in logs].count("model_failed") == 1


@pytest.mark.parametrize(
    ("policy", "broken", "expected"),
    [
        ("latest:1", (4,), {"4": "failed", "3": "ready"}),
        ("latest:1", (4, 3), {"4": "failed", "3": "failed", "2": "ready"}),
        ("latest:1", (4, 3, 2), {"4": "failed", "3": "failed", "2": "failed", "1": "ready"}),
        ("latest:1", (3, 2, 1), {"4": "ready"}),
        ("latest:2", (4,), {"4": "failed", "3": "ready", "2": "ready"}),
        ("latest:2", (3,), {"4": "ready", "3": "failed", "2": "ready"}),
        ("latest:2", (4, 3), {"4": "failed", "3": "failed", "2": "ready", "1": "ready"}),
        ("latest:2", (4, 2), {"4": "failed", "3": "ready", "2": "failed", "1": "ready"}),
        ("latest:2", (4, 3, 2), {"4": "failed", "3": "failed", "2": "failed", "1": "ready"}),
        ("latest:9", (4, 3), {"4": "failed", "3": "failed", "2": "ready", "1": "ready"}),
        ("all", (4, 2), {"4": "failed", "3": "ready", "2": "failed", "1": "ready"}),
        ("1,3", (3,), {"3": "failed", "1": "ready"}),
        ("1,3,7", (1,), {"7": "failed", "3": "ready", "1": "failed"}),
    ],
)
async def test_as_many_serve_as_should_from_the_highest_that_load(root, policy, broken, expected):
    publish(root, 2, 3, 4)
    models = with_broken(*broken)
    async with repository_of(root, models, policy=policy) as repository:
        assert states(repository) == expected

    # Nothing was loaded for nothing.
    assert {one.version for one in models.opened} == {v for v, state in expected.items() if state == "ready"}


async def test_versions_that_are_not_listed_never_stand_in(root):
    publish(root, 2, 3)
    models, told = with_broken(1, 3), Told()
    with pytest.raises(StartupError, match=r"could be loaded: tiny: broken 1; tiny: broken 3$"):
        async with repository_of(root, models, policy="1,3", told=told):
            pass

    assert models.opened == []
    assert tries(told) == (0, 2)


async def test_a_start_fails_only_when_no_lower_version_loads_either(root):
    publish(root, 2, 3)
    models, told = with_broken(1, 2, 3), Told()
    with pytest.raises(
        StartupError, match=r"could be loaded: tiny: broken 1; tiny: broken 2; tiny: broken 3$"
    ):
        async with repository_of(root, models, told=told):
            pass

    assert tries(told) == (0, 3)


async def test_a_model_whose_folder_cannot_be_read_is_a_reason_not_to_start(root, monkeypatch):
    monkeypatch.setattr(RepositoryFolder, "look", lambda folder: Seen({"tiny": None}, ()))
    with pytest.raises(StartupError, match=r"could be loaded: tiny: its folder cannot be read$"):
        async with repository_of(root, FakeModels()):
            pass


# While it fails


async def test_while_the_failed_version_fails_the_one_in_its_place_stays_and_nothing_is_loaded_again(root):
    publish(root, 2, 3)
    models, told = with_broken(2, 3), Told()
    async with polled_of(root, models, told=told) as polled:
        with capture_logs() as logs:
            assert await polled.look(10) == {"1": "ready", "2": "failed", "3": "failed"}

        assert logs == []
        assert tries(told) == (1, 2)
        assert models.opened[0].is_open


async def test_what_failed_is_tried_again_after_a_while_and_less_and_less_often(root, monkeypatch):
    publish(root, 2, 3)
    models, told, now = with_broken(2, 3), Told(), 0.0
    monkeypatch.setattr(served_model, "time", SimpleNamespace(monotonic=lambda: now))
    async with polled_of(root, models, told=told) as polled:
        with capture_logs() as logs:
            failures = []
            for seconds in range(0, 1000, 10):
                now = float(seconds)
                assert await polled.look(1) == {"1": "ready", "2": "failed", "3": "failed"}
                failures.append(tries(told)[1])

        # Each of the two at 0, 30, 90, 210, 450 and 930 s.
        assert [failures[at // 10] for at in (20, 30, 80, 90, 200, 210, 440, 450, 920, 930, 990)] == [
            *(2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12)
        ]
        assert logs == []
        assert len(models.opened) == 1


async def test_the_files_of_the_one_in_its_place_are_followed_like_any_others(root):
    publish(root, 2)
    models = with_broken(2)
    async with polled_of(root, models) as polled:
        write_files(root / "tiny" / "1", model=tiny_model(divisor=20))
        assert await polled.look() == {"1": "ready", "2": "failed"}
        assert [one.is_open for one in models.opened] == [False, True]

        (root / "tiny" / "1" / "model.onnx").write_bytes(b"half")
        assert await polled.look() == {"1": "ready", "2": "failed"}
        assert [one.is_open for one in models.opened] == [False, True]
        assert "not the file that its manifest describes" in polled.repository.entry("tiny", "1").reason

        write_files(root / "tiny" / "1", model=tiny_model(divisor=30))
        assert await polled.look() == {"1": "ready", "2": "failed"}
        assert [one.is_open for one in models.opened] == [False, False, True]
        assert polled.repository.entry("tiny", "1").reason == ""


async def test_a_version_between_that_is_repaired_takes_the_place(root):
    publish(root, 2, 3)
    models = with_broken(2, 3)
    async with polled_of(root, models) as polled:
        del models.broken["tiny", "2"]
        write_files(root / "tiny" / "2", model=tiny_model(divisor=20))
        with capture_logs() as logs:
            assert await polled.look() == {"2": "ready", "3": "failed"}

        assert [log["event"] for log in logs] == ["model_ready", "lower_version_serves", "model_unloaded"]
        assert (logs[1]["version"], logs[1]["instead_of"]) == ("2", ["3"])
        assert models.open_versions == [("tiny", "2")]


async def test_a_running_server_comes_to_serve_what_a_restarted_one_would(root):
    models = with_broken(3)
    async with polled_of(root, models) as polled:
        publish(root, 2, 3)
        assert await polled.look() == {"2": "ready", "3": "failed"}
    async with polled_of(root, models) as restarted:
        assert states(restarted.repository) == {"2": "ready", "3": "failed"}


async def test_a_lower_version_that_comes_later_is_served_where_nothing_could_be(root):
    models = with_broken(1)
    async with polled_of(root, models) as polled:
        assert await polled.look() == {"1": "failed"}
        shutil.move(root / "tiny" / "1", root / "tiny" / "5")
        models.broken = {("tiny", "5"): "broken 5"}
        publish(root, 3)
        assert await polled.look() == {"3": "ready", "5": "failed"}


async def test_what_serves_and_is_no_longer_on_disk_goes_when_a_lower_version_can_serve(root):
    """A version that was taken away was rolled back."""
    publish(root, 2)
    models = with_broken(3)
    async with polled_of(root, models) as polled:
        shutil.rmtree(root / "tiny" / "2")
        publish(root, 3)
        assert await polled.look() == {"1": "ready", "3": "failed"}

        shutil.rmtree(root / "tiny" / "1")
        write_files(root / "tiny" / "3", model=tiny_model(divisor=20))
        # Now nothing on disk can: what served is kept.
        assert await polled.look() == {"1": "ready", "3": "failed"}


# The end of it


async def test_the_failed_version_takes_over_when_it_loads_and_nobody_loses_an_answer(root):
    publish(root, 2)
    models = with_broken(2)
    async with polled_of(root, models) as polled:
        repository = polled.repository
        answered: list[str] = []
        ended = asyncio.Event()

        async def ask() -> None:
            while not ended.is_set():
                with repository.lease("tiny") as classifier:
                    for _ in range(3):
                        await asyncio.sleep(0)
                        assert classifier.is_open
                    answered.append(classifier.version)

        askers = [asyncio.create_task(ask()) for _ in range(4)]
        with repository.lease("tiny") as held:
            models.broken.clear()
            models.gate.clear()
            write_files(root / "tiny" / "2", model=tiny_model(divisor=20))
            await polled.look()
            assert models.waiting == [("tiny", "2")]
            assert answering(repository) == "1"
            models.gate.set()
            await until(lambda: answering(repository) == "2")
            assert states(repository) == {"1": "unloading", "2": "ready"}
            assert held.is_open
        await until(lambda: states(repository) == {"2": "ready"})
        ended.set()
        await asyncio.gather(*askers)

        assert set(answered) == {"1", "2"}
        assert answered == sorted(answered)
        assert models.open_versions == [("tiny", "2")]


async def test_a_retry_that_succeeds_ends_it_too(root, monkeypatch):
    monkeypatch.setattr(served_model, "FIRST_RETRY_SECONDS", 0.0)
    publish(root, 2, 3)
    models = with_broken(2, 3)
    async with polled_of(root, models) as polled:
        models.broken.clear()
        assert await polled.look(1) == {"3": "ready"}
        assert await polled.look(3) == {"3": "ready"}

    assert [one.version for one in models.opened] == ["1", "3"]


async def test_a_broken_version_that_is_taken_away_leaves_the_other_without_a_new_load(root):
    publish(root, 2)
    models = with_broken(2)
    async with polled_of(root, models) as polled:
        shutil.rmtree(root / "tiny" / "2")
        assert await polled.look() == {"1": "ready"}
        assert len(models.opened) == 1
        assert models.opened[0].is_open


async def test_a_model_that_is_taken_away_takes_what_stood_in_with_it(root):
    publish(root, 2)
    write_model(root, "other")
    models, told = with_broken(2), Told()
    async with polled_of(root, models, told=told) as polled:
        shutil.rmtree(root / "tiny")
        await polled.look()
        assert catalog(polled.repository) == {("other", "1"): "ready"}

    assert told.gone == ["tiny"]


# Callers


async def test_a_load_fails_and_says_which_lower_version_serves(root):
    publish(root, 2, 3)
    models = with_broken(2, 3)
    async with repository_of(root, models) as repository:
        await repository.unload("tiny")
        assert states(repository) == {}
        assert models.open_versions == []

        reason = (
            r"^model tiny failed to load: version 3: broken 3; version 2: broken 2; version 1 is serving$"
        )
        for _ in range(2):
            with pytest.raises(ModelControlError, match=reason):
                await repository.load("tiny")
            assert states(repository) == {"1": "ready", "2": "failed", "3": "failed"}
        assert len(models.opened) == 2  # at the start, and after it was unloaded

        models.broken.clear()
        await repository.load("tiny")
        assert states(repository) == {"3": "ready"}


async def test_an_unload_while_a_lower_version_is_loaded_waits_and_unloads_all(root):
    publish(root, 2)
    models = with_broken(2)
    async with repository_of(root, models) as repository:
        await repository.unload("tiny")
        models.gate.clear()
        loading = asyncio.create_task(repository.load("tiny"))
        await until(lambda: models.waiting == [("tiny", "2")])
        unloading = asyncio.create_task(repository.unload("tiny"))
        models.gate.set()
        with pytest.raises(ModelControlError):
            await loading
        await unloading

        assert states(repository) == {}
        assert models.open_versions == []


async def test_the_end_while_a_lower_version_is_loaded_does_not_wait_for_it(root):
    publish(root, 2)
    (root / "tiny" / "2" / "model.onnx").write_bytes(b"broken")
    models = FakeModels()
    models.gate.clear()
    async with asyncio.timeout(30), repository_of(root, models, start=False) as repository:
        starting = asyncio.create_task(repository.start())
        await until(lambda: models.waiting == [("tiny", "1")])
        assert states(repository) == {"1": "loading", "2": "failed"}

    with pytest.raises(DrainingError):
        await starting
    assert models.opened == []


async def test_the_end_while_the_failed_version_takes_over_leaves_the_other_serving(root):
    publish(root, 2)
    models = with_broken(2)
    async with asyncio.timeout(30), repository_of(root, models) as repository:
        models.broken.clear()
        models.gate.clear()
        loading = asyncio.create_task(repository.load("tiny"))
        await until(lambda: models.waiting == [("tiny", "2")])
        await repository.stop_changes()

        assert answering(repository) == "1"
        with pytest.raises(DrainingError):
            await loading
    assert models.open_versions == []
