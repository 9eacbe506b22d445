"""Models come and go without a request that fails; what goes wrong leaves what serves alone.

Many of these are written after Triton's qa/L0_lifecycle; each says which test it comes from.
"""

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from support.fake_models import FakeModels, Told, answering, catalog, repository_of
from support.serving import until
from support.tiny import tiny_model, write_files, write_model
from vistazo_server.errors import (
    DrainingError,
    InvalidRequestError,
    ModelControlError,
    ModelNotFoundError,
    ModelNotReadyError,
    StartupError,
)
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.repository.versions import VersionPolicy


@pytest.fixture
def root(tmp_path) -> Path:
    write_model(tmp_path / "models")
    return tmp_path / "models"


# Reload


async def test_the_old_version_serves_until_the_new_one_is_warm_and_ends_with_its_last_request(root):
    """L0_lifecycle test_model_availability_on_reload."""
    models = FakeModels()
    async with repository_of(root, models) as repository:
        with repository.lease("tiny") as held:
            write_model(root, version=2)
            models.gate.clear()
            loading = asyncio.create_task(repository.load("tiny"))
            await until(lambda: models.waiting == [("tiny", "2")])

            assert answering(repository) == "1"
            assert catalog(repository) == {("tiny", "1"): "ready", ("tiny", "2"): "loading"}
            with pytest.raises(ModelNotReadyError, match="version 2 of model tiny is loading"):
                repository.lease("tiny", "2")

            models.gate.set()
            await until(lambda: catalog(repository)["tiny", "2"] == "ready")
            assert answering(repository) == "2"
            assert catalog(repository) == {("tiny", "1"): "unloading", ("tiny", "2"): "ready"}
            with pytest.raises(ModelNotReadyError, match="version 1 of model tiny is unloading"):
                repository.lease("tiny", "1")
            # Who had it before has it still, however long that takes.
            for _ in range(100):
                await asyncio.sleep(0)
            assert held.is_open
            assert not loading.done()
        await loading

        assert not held.is_open
        assert models.open_versions == [("tiny", "2")]
        with pytest.raises(ModelNotFoundError, match="version: '1' of tiny is not served; version 2 is"):
            repository.lease("tiny", "1")


async def test_the_same_version_exported_again_is_swapped_in_place(root):
    """L0_lifecycle test_dynamic_model_modify."""
    models = FakeModels()
    async with repository_of(root, models) as repository:
        with repository.lease("tiny") as before:
            write_files(root / "tiny" / "1", model=tiny_model(divisor=20))
            loading = asyncio.create_task(repository.load("tiny"))
            await until(lambda: len(models.opened) == 2)
            await until(
                lambda: (
                    answering(repository) == "1"
                    and repository.lease("tiny").spec.model_sha256 != before.sha256
                )
            )
            assert before.is_open
            assert catalog(repository) == {("tiny", "1"): "ready"}
        await loading

        assert not before.is_open
        assert models.most_at_once["tiny", "1"] == 2


async def test_files_that_were_only_touched_are_not_loaded_again(root):
    models = FakeModels()
    async with repository_of(root, models) as repository:
        write_files(root / "tiny" / "1")
        await repository.load("tiny")
        await repository.load("tiny")

    assert len(models.opened) == 1


async def test_a_reload_that_fails_leaves_the_old_version_serving_and_says_why(root):
    """L0_lifecycle test_model_reload_fail."""
    models, told = FakeModels(), Told()
    async with repository_of(root, models, told=told) as repository:
        write_model(root, version=2)
        models.broken["tiny", "2"] = "no such operator"
        with pytest.raises(
            ModelControlError,
            match=r"^model tiny failed to load: version 2: no such operator; version 1 is serving$",
        ):
            await repository.load("tiny")

        assert answering(repository) == "1"
        assert catalog(repository) == {("tiny", "1"): "ready", ("tiny", "2"): "failed"}
        assert repository.entry("tiny").version == "1"
        assert repository.entry("tiny", "2").reason == "no such operator"
        with pytest.raises(
            ModelNotReadyError, match="version 2 of model tiny failed to load: no such operator"
        ):
            repository.lease("tiny", "2")

        models.broken.clear()
        await repository.load("tiny")
        assert catalog(repository) == {("tiny", "2"): "ready"}

    assert told.loads == [("tiny", True), ("tiny", False), ("tiny", True)]


async def test_changed_files_of_a_served_version_that_fail_leave_it_serving_and_say_why(root):
    models = FakeModels()
    async with repository_of(root, models) as repository:
        (root / "tiny" / "1" / "model.onnx").write_bytes(b"half")
        with pytest.raises(ModelControlError, match=r"version 1: .*not the file that its manifest describes"):
            await repository.load("tiny")

        assert answering(repository) == "1"
        assert catalog(repository) == {("tiny", "1"): "ready"}
        assert "not the file that its manifest describes" in repository.entry("tiny").reason

        write_files(root / "tiny" / "1")
        await repository.load("tiny")
        assert repository.entry("tiny").reason == ""
    assert len(models.opened) == 1


async def test_a_crash_of_the_loader_fails_that_version_and_nothing_else(root):
    models = FakeModels()

    async with repository_of(root, models) as repository:
        write_model(root, version=2)
        repository._rollout._load_model = None  # whatever this is, it is no loader
        with pytest.raises(ModelControlError, match=r"version 2: unexpected TypeError: .*NoneType.*"):
            await repository.load("tiny")

        assert answering(repository) == "1"


async def test_a_version_is_rolled_back_by_taking_its_folder_away(root):
    """L0_lifecycle test_dynamic_version_load_unload."""
    models = FakeModels()
    write_model(root, version=2)
    async with repository_of(root, models) as repository:
        assert answering(repository) == "2"
        shutil.rmtree(root / "tiny" / "2")
        await repository.load("tiny")

        assert catalog(repository) == {("tiny", "1"): "ready"}
        assert models.open_versions == [("tiny", "1")]


async def test_a_model_whose_folder_is_gone_goes_on_serving_until_it_is_unloaded(root):
    """L0_lifecycle test_dynamic_file_delete."""
    models, told = FakeModels(), Told()
    async with repository_of(root, models, told=told) as repository:
        shutil.rmtree(root / "tiny")
        with pytest.raises(ModelNotFoundError, match="'tiny' is not in the repository"):
            await repository.load("tiny")
        assert answering(repository) == "1"

        await repository.unload("tiny")
        with pytest.raises(ModelNotFoundError, match="'tiny' is not in the repository; no model is loaded"):
            repository.lease("tiny")
        assert told.gone == ["tiny"]


# Load and unload


async def test_explicit_control_loads_and_unloads(root):
    """L0_lifecycle test_model_control."""
    models, told = FakeModels(), Told()
    write_model(root, "other")
    async with repository_of(root, models, told=told) as repository:
        await repository.unload("tiny")

        assert catalog(repository) == {("other", "1"): "ready"}
        assert models.open_versions == [("other", "1")]
        with pytest.raises(ModelNotReadyError, match=r"^model tiny is not loaded$"):
            repository.lease("tiny")
        with pytest.raises(ModelNotReadyError, match=r"^model tiny is not loaded$"):
            repository.entry("tiny")
        with repository.lease("") as only:
            assert only.name == "other"

        await repository.unload("tiny")
        await repository.load("tiny")
        assert answering(repository) == "1"
    assert [state for name, _, state, _ in told.states if name == "tiny"] == [
        *("loading", "loading", "ready", "unloading", "unavailable", "loading", "ready"),
    ]
    assert models.open_versions == []


async def test_unload_waits_for_who_has_the_model_and_refuses_who_comes(root):
    """L0_lifecycle test_dynamic_model_load_unload: in-flight requests end, new ones are refused."""
    models = FakeModels()
    async with repository_of(root, models) as repository:
        with repository.lease("tiny") as held:
            unloading = asyncio.create_task(repository.unload("tiny"))
            await until(lambda: catalog(repository) == {("tiny", "1"): "unloading"})
            with pytest.raises(ModelNotReadyError, match="model tiny is unloading"):
                repository.lease("tiny")
            assert held.is_open
        await unloading

        assert not held.is_open
        assert catalog(repository) == {}


@pytest.mark.parametrize("name", ["nothing", "Tiny", "tiny/1", "../models/tiny", "..", "", "x" * 1000])
async def test_a_name_that_is_not_in_the_repository_can_be_neither_loaded_nor_unloaded(root, name):
    """L0_lifecycle test_model_control_fail and test_file_override_security."""
    models = FakeModels()
    async with repository_of(root, models) as repository:
        for change in (repository.load, repository.unload):
            with pytest.raises((ModelNotFoundError, InvalidRequestError)):
                await change(name)

        assert catalog(repository) == {("tiny", "1"): "ready"}
        assert repository.names() == ["tiny"]
        # Nothing is kept of what strangers name.
        assert list(repository._models) == ["tiny"]


async def test_without_explicit_control_callers_change_nothing(root):
    """L0_lifecycle test_dynamic_model_load_unload_disabled and test_model_control (polling)."""
    models = FakeModels()
    async with repository_of(root, models, explicit=False) as repository:
        for change in (repository.load, repository.unload):
            with pytest.raises(ModelControlError, match="only with --model-control explicit"):
                await change("tiny")

        assert answering(repository) == "1"


async def test_the_index_has_what_is_loaded_and_what_could_be(root):
    """L0_lifecycle test_model_repository_index."""
    models = FakeModels()
    models.broken["broken", "1"] = "no such operator"
    for name in ("broken", "idle"):
        write_model(root, name)
    write_model(root, "idle", version=2)
    async with repository_of(root, models) as repository:
        await repository.unload("idle")
        index = [(row.name, row.version, row.state.value, row.reason) for row in await repository.index()]
        shutil.rmtree(root)
        without = [(row.name, row.state.value) for row in await repository.index()]

    assert index == [
        ("broken", "1", "unavailable", "no such operator"),
        ("idle", "2", "unavailable", "not loaded"),
        ("tiny", "1", "ready", ""),
    ]
    assert without == [("broken", "unavailable"), ("tiny", "ready")]


async def test_models_to_load_at_the_start_are_chosen_by_name(root):
    """L0_lifecycle test_multiple_model_repository_control_startup_models."""
    models = FakeModels()
    write_model(root, "other")
    async with repository_of(root, models, start=False) as everything:
        assert everything.names() == ["other", "tiny"]
    async with ModelRepository(
        root,
        load_model=models.load,
        policy_for=lambda name: VersionPolicy.parse("latest:1"),
        observer=Told(),
        explicit=True,
    ) as repository:
        with pytest.raises(StartupError, match=r"'nothing' is not in the repository .*; it has other, tiny"):
            repository.find(["nothing"])
        repository.find(["other"])
        await repository.start()

        assert catalog(repository) == {("other", "1"): "ready"}


# Versions


async def test_the_latest_two_are_served_and_the_third_pushes_the_oldest_out(root):
    """L0_lifecycle test_dynamic_version_load_unload, with a version policy."""
    models = FakeModels()
    for version in (2, 3):
        write_model(root, version=version)
    async with repository_of(root, models, policy="latest:2") as repository:
        assert catalog(repository) == {("tiny", "2"): "ready", ("tiny", "3"): "ready"}
        assert (answering(repository), answering(repository, "2")) == ("3", "2")
        with pytest.raises(ModelNotFoundError, match="'1' of tiny is not served; versions 3, 2 are"):
            repository.lease("tiny", "1")

        write_model(root, version=10)
        await repository.load("tiny")
        assert catalog(repository) == {("tiny", "3"): "ready", ("tiny", "10"): "ready"}
        assert answering(repository) == "10"


async def test_one_that_fails_keeps_the_place_of_one_that_served(root):
    models = FakeModels()
    write_model(root, version=2)
    async with repository_of(root, models, policy="latest:2") as repository:
        write_model(root, version=3)
        models.broken["tiny", "3"] = "broken"
        with pytest.raises(ModelControlError, match="version 3: broken; versions 2, 1 are serving"):
            await repository.load("tiny")

        assert catalog(repository) == {
            ("tiny", "1"): "ready",
            ("tiny", "2"): "ready",
            ("tiny", "3"): "failed",
        }
        write_model(root, version=4)
        with pytest.raises(ModelControlError):
            await repository.load("tiny")
        assert catalog(repository) == {
            ("tiny", "2"): "ready",
            ("tiny", "3"): "failed",
            ("tiny", "4"): "ready",
        }


async def test_listed_versions_are_served_and_one_that_is_missing_is_said(root):
    models = FakeModels()
    for version in (2, 3):
        write_model(root, version=version)
    async with repository_of(root, models, policy="1,3,7") as repository:
        assert catalog(repository) == {
            ("tiny", "1"): "ready",
            ("tiny", "3"): "ready",
            ("tiny", "7"): "failed",
        }
        assert repository.entry("tiny", "7").reason == "version 7 is not in the repository"

        write_model(root, version=7)
        await repository.load("tiny")
        assert answering(repository) == "7"
        shutil.rmtree(root / "tiny" / "3")
        with pytest.raises(ModelControlError, match="version 3 is not in the repository"):
            await repository.load("tiny")
        assert catalog(repository) == {
            ("tiny", "1"): "ready",
            ("tiny", "3"): "failed",
            ("tiny", "7"): "ready",
        }
        assert models.open_versions == [("tiny", "1"), ("tiny", "7")]


# Many at once


@pytest.mark.parametrize("seed", range(5))
async def test_loads_and_unloads_of_one_model_at_once_end_in_order_and_lose_nobody(root, seed):
    """L0_lifecycle test_concurrent_same_model_load_unload_stress."""
    models, chance = FakeModels(), random.Random(seed)
    async with repository_of(root, models) as repository:
        asked = 0

        async def ask() -> None:
            nonlocal asked
            while not ended.is_set():
                try:
                    with repository.lease("tiny") as classifier:
                        for _ in range(chance.randrange(5)):
                            await asyncio.sleep(0)
                            assert classifier.is_open
                        asked += 1
                except (ModelNotReadyError, ModelNotFoundError):
                    pass
                # Not 0: a loop that never waits keeps the interpreter's lock from the threads that load.
                await asyncio.sleep(chance.random() / 1000)

        async def change() -> None:
            for _ in range(10):
                task = asyncio.create_task(chance.choice((repository.load, repository.unload))("tiny"))
                if chance.random() < 0.3:
                    for _ in range(chance.randrange(5)):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    assert task.exception() is None

        ended = asyncio.Event()
        askers = [asyncio.create_task(ask()) for _ in range(8)]
        async with asyncio.timeout(30):
            await asyncio.gather(*(change() for _ in range(8)))
            await repository.load("tiny")
        ended.set()
        await asyncio.gather(*askers)

        assert asked > 0
        assert len(models.opened) > 5  # it did come and go
        assert models.most_at_once["tiny", "1"] == 1
        assert catalog(repository) == {("tiny", "1"): "ready"}
        assert models.open_versions == [("tiny", "1")]
    assert models.open_versions == []


async def test_models_are_loaded_one_at_a_time(root):
    """Unlike L0_lifecycle test_concurrent_model_load: warm-up measures, and two would measure each other."""
    models = FakeModels()
    async with repository_of(root, models) as repository:
        names = [f"model-{number}" for number in range(5)]
        for name in names:
            write_model(root, name)
        models.gate.clear()
        loading = [asyncio.create_task(repository.load(name)) for name in names]
        await until(lambda: len(models.waiting) == 1)
        for _ in range(50):
            await asyncio.sleep(0.001)
            assert len(models.waiting) == 1
        models.gate.set()
        await asyncio.gather(*loading)

        assert len(repository.entries()) == 6


async def test_a_load_goes_on_when_its_caller_goes(root):
    models = FakeModels()
    async with repository_of(root, models) as repository:
        write_model(root, version=2)
        models.gate.clear()
        loading = asyncio.create_task(repository.load("tiny"))
        await until(lambda: bool(models.waiting))
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        assert loading.cancelled()
        models.gate.set()

        await until(lambda: catalog(repository) == {("tiny", "2"): "ready"})


# The end


async def test_the_end_while_loading_does_not_wait_for_the_load(root):
    """L0_lifecycle test_shutdown_while_loading."""
    models = FakeModels()
    async with asyncio.timeout(30), repository_of(root, models) as repository:
        write_model(root, version=2)
        models.gate.clear()
        first = asyncio.create_task(repository.load("tiny"))
        await until(lambda: bool(models.waiting))
        second = asyncio.create_task(repository.unload("tiny"))
        await asyncio.sleep(0)
        await repository.stop_changes()

        # What serves goes on serving while the server drains.
        assert answering(repository) == "1"
        for change in (first, second, repository.load("tiny")):
            with pytest.raises(DrainingError, match="the server is draining"):
                await change
    assert models.open_versions == []


async def test_the_end_while_unloading_does_not_wait_for_who_still_has_the_model(root):
    """L0_lifecycle test_shutdown_while_background_unloading."""
    models = FakeModels()
    async with asyncio.timeout(30), repository_of(root, models) as repository:
        held = repository.lease("tiny")
        held.__enter__()  # by somebody who never ends
        unloading = asyncio.create_task(repository.unload("tiny"))
        await until(lambda: catalog(repository) == {("tiny", "1"): "unloading"})

    assert models.open_versions == []
    with pytest.raises(DrainingError):
        await unloading


async def test_the_end_while_the_models_of_the_start_are_loading(root):
    models = FakeModels()
    models.gate.clear()
    async with asyncio.timeout(30), repository_of(root, models, start=False) as repository:
        starting = asyncio.create_task(repository.start())
        await until(lambda: bool(models.waiting))

    with pytest.raises(DrainingError):
        await starting
    assert models.opened == []


async def test_a_model_that_is_unloaded_before_the_start_reached_it_stays_unloaded(root):
    models = FakeModels()
    models.gate.clear()
    write_model(root, "first")
    async with repository_of(root, models, start=False) as repository:
        starting = asyncio.create_task(repository.start())
        await until(lambda: models.waiting == [("first", "1")])
        await repository.unload("tiny")
        models.gate.set()
        await starting

        assert catalog(repository) == {("first", "1"): "ready"}
