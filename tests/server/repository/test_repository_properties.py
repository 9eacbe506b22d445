"""The polled repository against what must hold whatever happens to its folder: hypothesis publishes, breaks
and removes versions, loses the disk, holds instances, and looks."""

import asyncio
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.examples import examples
from support.fake_models import FakeModels, Told
from support.serving import until
from support.tiny import tiny_model, write_files, write_model
from vistazo_server.repository.catalog import ModelState
from vistazo_server.repository.folder import RepositoryFolder
from vistazo_server.repository.model_repository import ModelRepository
from vistazo_server.repository.poller import RepositoryPoller
from vistazo_server.repository.versions import VersionPolicy, newest_first

versions = st.integers(1, 4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), versions, st.sampled_from([10.0, 20.0, 30.0])),
        st.tuples(st.just("break"), versions),
        st.tuples(st.just("remove"), versions),
        st.tuples(st.just("remove model")),
        st.tuples(st.just("lose"), st.integers(1, 3)),
        st.tuples(st.just("hold")),
        st.tuples(st.just("let go")),
        st.tuples(st.just("look"), st.integers(1, 3)),
    ),
    max_size=25,
)


@settings(max_examples=examples(80), deadline=None)
@given(steps=steps, policy=st.sampled_from(["latest:1", "latest:2", "all", "1,3"]))
@example(steps=[("publish", 2, 10.0), ("hold",), ("look", 2), ("break", 2), ("look", 2)], policy="latest:1")
def test_what_is_whole_serves_and_what_fails_takes_nothing_away(steps, policy):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_Play(Path(folder) / "models", VersionPolicy.parse(policy)).run(steps))


class _Play:
    def __init__(self, root: Path, policy: VersionPolicy) -> None:
        self.root = root
        self.policy = policy
        self.models = FakeModels()
        self.repository = ModelRepository(
            root, load_model=self.models.load, policy_for=lambda name: policy, observer=Told()
        )
        self.poller = RepositoryPoller(RepositoryFolder(root), self.repository, on_readable=lambda _: None)
        self.held = ExitStack()
        self.holding = []
        self.whole: dict[str, bool] = {}
        """The versions on disk, and whether they are what their manifests say."""

    async def run(self, steps) -> None:
        write_model(self.root, "other")  # an empty repository is a lost one
        self._publish(1, 10.0)
        async with self.repository as repository:
            repository.find()
            await repository.start()
            for step in steps:
                await self._step(*step)
                self._check_always()
            self.held.close()
            self.holding.clear()
            await self._look(3)
            self._check_at_rest()
        assert self.models.open_versions == []
        await self._check_restart()

    async def _step(self, what: str, *arguments) -> None:
        match what:
            case "publish":
                self._publish(*arguments)
            case "break" if str(arguments[0]) in self.whole:
                (self._folder(arguments[0]) / "model.onnx").write_bytes(b"broken")
                self.whole[str(arguments[0])] = False
            case "remove" if str(arguments[0]) in self.whole:
                shutil.rmtree(self._folder(arguments[0]))
                del self.whole[str(arguments[0])]
            case "remove model":
                shutil.rmtree(self.root / "tiny", ignore_errors=True)
                self.whole.clear()
            case "lose":
                away = self.root.with_name("away")
                serving = self._in_state("ready")
                self.root.rename(away)
                for _ in range(arguments[0]):
                    await self.poller.poll()
                away.rename(self.root)
                assert self._in_state("ready") >= serving
            case "hold" if self._in_state("ready"):
                self.holding.append(self.held.enter_context(self.repository.lease("tiny")))
            case "let go":
                self.held.close()
                self.holding.clear()
            case "look":
                await self._look(arguments[0])

    def _publish(self, version: int, divisor: float) -> None:
        folder = self._folder(version)
        if folder.exists():
            write_files(folder, model=tiny_model(divisor=divisor))
        else:
            write_model(self.root, version=version, model=tiny_model(divisor=divisor))
        self.whole[str(version)] = True

    def _folder(self, version: int) -> Path:
        return self.root / "tiny" / str(version)

    def _in_state(self, state: str) -> set[str]:
        entries = self.repository.entries()
        return {one.version for one in entries if one.name == "tiny" and one.state.value == state}

    async def _look(self, times: int) -> None:
        before = self._in_state("ready")
        for _ in range(times):
            await self.poller.poll()
            # Until the changes have ended, or wait for who is holding.
            await until(lambda: not self.poller._follows or bool(self.holding))
            for _ in range(20 if self.holding else 0):
                await asyncio.sleep(0.001)
        if before and self.whole and self.policy.choose(self.whole):
            assert self._in_state("ready"), "a model that served was taken out of service"

    def _check_always(self) -> None:
        assert all(instance.is_open for instance in self.holding)
        assert max(self.models.most_at_once.values()) <= 2

    async def _check_restart(self) -> None:
        """What is whole serves after a restart too, as many versions as should."""
        whole = [version for version in newest_first(self.whole) if self.whole[version]]
        expected = whole[: self.policy.latest] if self.policy.latest else self.policy.choose(whole)
        async with ModelRepository(
            self.root, load_model=FakeModels().load, policy_for=lambda name: self.policy, observer=Told()
        ) as restarted:
            restarted.find()
            await restarted.start()
            entries = restarted.entries()
            ready = [one.version for one in entries if one.name == "tiny" and one.state is ModelState.READY]
            assert ready == sorted(expected, key=int)

    def _check_at_rest(self) -> None:
        ready, failed = self._in_state("ready"), self._in_state("failed")
        wanted = self.policy.choose(self.whole)
        assert ready >= {version for version in wanted if self.whole[version]}
        # What is broken on disk failed, or an older instance of it still serves and says why.
        for version in wanted:
            if not self.whole[version]:
                assert self.repository.entry("tiny", version).reason
        broken = {version for version in self.whole if not self.whole[version]}
        assert failed <= {*broken, *self.policy.missing(self.whole)}
        assert ready | failed == {one.version for one in self.repository.entries() if one.name == "tiny"}
        if self.policy.latest:
            assert len(ready) <= self.policy.latest
            whole = [version for version in newest_first(self.whole) if self.whole[version]]
            if ready <= set(whole):
                # No older instance serves on: what was there before makes no difference.
                assert ready == set(whole[: self.policy.latest])
        else:
            assert ready <= {*self.policy.choose(ready)}
        assert self.models.open_versions == sorted(
            [("other", "1"), *(("tiny", version) for version in ready)]
        )
