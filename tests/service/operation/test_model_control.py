"""Model control in the real server: what callers, health and metrics see, and what remains of the gone."""

import asyncio
import gc
import itertools
import random
import re
import shutil
import weakref
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2

from support.process import server_process, vistazo
from support.serving import PATIENCE_SECONDS, labels, raw, serving, until
from support.tiny import plain, tiny_model, write_files, write_model
from vistazo_client import Client
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc

RED = raw(plain(200, 10, 10))
STATES = ("not loaded", "loading", "unloading")


async def listed(server) -> list[tuple[str, str, int]]:
    models = (await server.stub.ListModels(pb.ListModelsRequest())).models
    return [(model.name, model.version, model.state) for model in models]


def series_of(server, version: str, model: str = "tiny") -> list[str]:
    """Return the names of the series that a model's version has in the metrics."""
    return [
        sample.name
        for family in server.server.metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("model") == model and sample.labels.get("version") == version
    ]


async def test_a_new_version_takes_over_and_nothing_is_left_of_the_old_one(models):
    async with serving(models, model_control="explicit", load="*") as server:
        repository = server.server.repository
        assert (await server.classify(RED)).version == "1"
        classifier = repository.lease("tiny").loaded.classifier
        batcher = classifier._batcher
        gone = [weakref.ref(one) for one in (classifier, batcher, batcher._run_batch.__self__)]
        del classifier, batcher
        assert len(series_of(server, "1")) > 50

        write_model(models, version=2)
        await repository.load("tiny")

        assert (await server.classify(RED)).version == "2"
        assert await listed(server) == [("tiny", "2", pb.READY)]
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(RED, version="1")
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        assert failed.value.details() == "version: '1' of tiny is not served; version 2 is"
        assert series_of(server, "1") == []
        assert server.sample("vistazo_model_ready", model="tiny", version="2") == 1
        assert server.outcomes(version="2") == {"ok": 1}
        assert server.sample("vistazo_model_loads_total", model="tiny", outcome="ok") == 2
        gc.collect()
        assert [ref() for ref in gone] == [None, None, None]


async def test_the_same_version_swapped_in_place_keeps_its_series_and_frees_its_old_instance(models):
    async with serving(models, model_control="explicit", load="tiny") as server:
        repository = server.server.repository
        await server.classify(RED)
        gone = weakref.ref(repository.lease("tiny").loaded.classifier._batcher._run_batch.__self__)
        before = series_of(server, "1")

        write_files(models / "tiny" / "1", model=tiny_model(divisor=1000))
        await repository.load("tiny")

        answer = await server.classify(RED)
        assert answer.results[0].predictions.predictions[0].probability < 0.5
        assert series_of(server, "1") == before
        assert server.outcomes() == {"ok": 2}
        assert server.in_flight() == server.queued() == 0
        gc.collect()
        assert gone() is None


async def test_a_model_that_is_unloaded_is_not_serving_and_leaves_no_series(models):
    write_model(models, "other")
    async with serving(models, model_control="explicit", load="*") as server:
        watching = server.health.Watch(
            health_pb2.HealthCheckRequest(service="tiny"), timeout=PATIENCE_SECONDS
        )
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        await server.server.repository.unload("tiny")

        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await server.health_of("") == await server.health_of("other") == "SERVING"
        assert await listed(server) == [("other", "1", pb.READY)]
        assert series_of(server, "1") == []
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(RED, model="tiny")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert failed.value.details() == "model tiny is not loaded"
        # The only one that is left needs no name.
        assert (await server.classify(RED)).model == "other"

        await server.server.repository.load("tiny")
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await server.classify(RED, model="tiny")).version == "1"
        watching.cancel()


async def test_with_nothing_to_load_the_server_is_ready_and_says_that_nothing_is_loaded(models):
    async with serving(models, model_control="explicit") as server:
        assert await server.health_of("") == "SERVING"
        assert await listed(server) == []
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(RED)

    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == "model: no model is loaded"


async def test_all_versions_of_a_model_answer_by_number_and_the_highest_without(models):
    write_model(models, version=2, model=tiny_model(divisor=1000))
    async with serving(models, version_policy="all") as server:
        assert await listed(server) == [("tiny", "1", pb.READY), ("tiny", "2", pb.READY)]
        first, second, highest = [await server.classify(RED, version=version) for version in ("1", "2", "")]
        one = await server.stub.GetModel(pb.GetModelRequest(name="tiny"))
        other = await server.stub.GetModel(pb.GetModelRequest(name="tiny", version="1"))

    assert (first.version, second.version, highest.version) == ("1", "2", "2")
    assert first.results[0] != second.results[0] == highest.results[0]
    assert (one.version, other.version) == ("2", "1")


async def test_a_broken_highest_version_does_not_stop_the_other_that_is_served(models):
    (write_model(models, version=2) / "model.onnx").write_bytes(b"")
    async with serving(models, version_policy="all") as server:
        assert (await server.classify(RED)).version == "1"
        assert await listed(server) == [("tiny", "1", pb.READY), ("tiny", "2", pb.FAILED)]
        assert await server.health_of("tiny") == "SERVING"
        # "" is the highest that is ready.
        assert (await server.stub.GetModel(pb.GetModelRequest(name="tiny"))).version == "1"


async def test_polling_follows_the_repository_and_a_lost_one_changes_nothing(models):
    async with serving(models, model_control="poll", poll_seconds=0.02) as server:
        write_model(models, version=2)
        await until(lambda: server.sample("vistazo_model_ready", model="tiny", version="2") == 1)
        await until(lambda: not series_of(server, "1"))
        assert (await server.classify(RED)).version == "2"

        models.rename(models.parent / "away")
        await until(lambda: server.sample("vistazo_repository_readable") == 0)
        assert labels((await server.classify(RED)).results[0])[0] == "red"
        assert await server.health_of("tiny") == "SERVING"

        (models.parent / "away").rename(models)
        write_model(models, "other")
        await until(lambda: server.sample("vistazo_model_ready", model="other", version="1") == 1)
        shutil.rmtree(models / "tiny")
        await until(lambda: not series_of(server, "2"))
        assert await server.health_of("tiny") == "NOT_SERVING"
        assert server.sample("vistazo_model_loads_total", model="tiny", outcome="ok") == 0
        assert await server.health_of("") == "SERVING"


async def test_loads_and_unloads_over_the_protocol_lose_nobody_an_answer(models):
    """L0_lifecycle test_concurrent_same_model_load_unload_stress and test_model_availability_on_reload_3."""
    write_model(models, "steady")
    async with serving(models, model_control="explicit", load="*") as server:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        outcomes: Counter[str] = Counter()
        versions = itertools.count(2)
        ended = False

        async def ask(model: str) -> None:
            while not ended:
                try:
                    answer = await server.classify(RED, model=model)
                    assert labels(answer.results[0])[0] == "red"
                    outcomes[f"{model} ok"] += 1
                except grpc.aio.AioRpcError as error:
                    outcomes[f"{error.code().name}: {error.details()}"] += 1

        async def change(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(12):
                if chance.random() < 0.6:
                    write_model(models, version=next(versions))
                    await stub.RepositoryModelLoad(
                        open_inference_pb2.RepositoryModelLoadRequest(model_name="tiny"),
                        timeout=PATIENCE_SECONDS,
                    )
                else:
                    await stub.RepositoryModelUnload(
                        open_inference_pb2.RepositoryModelUnloadRequest(model_name="tiny"),
                        timeout=PATIENCE_SECONDS,
                    )

        askers = [asyncio.create_task(ask(model)) for model in ("tiny", "tiny", "tiny", "steady")]
        await asyncio.gather(*(change(seed) for seed in range(4)))
        await server.server.repository.load("tiny")
        ended = True
        await asyncio.gather(*askers)

        assert (await server.classify(RED, model="tiny")).version == str(next(versions) - 1)
        assert await server.health_of("tiny") == "SERVING"
    # Refused is only who came while there was no version; whoever was given one has an answer.
    refused = set(outcomes) - {"tiny ok", "steady ok"}
    assert refused <= {f"UNAVAILABLE: model tiny is {state}" for state in STATES}
    assert refused
    assert min(outcomes["tiny ok"], outcomes["steady ok"]) > 0


def test_the_command_polls_and_logs_what_comes_and_goes(models):
    with (
        server_process(models, "--model-control", "poll", "--poll-seconds", "0.05") as server,
        Client(server.address) as client,
    ):
        write_model(models, version=2)
        loaded = server.wait_for("model_ready")
        unloaded = server.wait_for("model_unloaded")
        assert client.classify(plain(200, 10, 10)).version == "2"
        (write_model(models, version=3) / "model.onnx").write_bytes(b"")
        failed = server.wait_for("model_failed")
        assert client.classify(plain(200, 10, 10)).version == "2"
        assert [(one.version, one.state) for one in client.models()] == [("2", "READY"), ("3", "FAILED")]
        server.terminate()
        assert server.wait() == 0

    assert (loaded["model"], loaded["version"], unloaded["version"]) == ("tiny", "2", "1")
    assert (failed["version"], failed["serving"]) == ("3", ["2"])
    assert server.other_output == []


@pytest.mark.parametrize(
    "control", [[], ["--model-control", "poll"], ["--model-control", "explicit", "--load", "*"]]
)
def test_a_restart_beside_a_broken_version_serves_what_the_running_server_did(models, control):
    (write_model(models, version=2) / "model.onnx").write_bytes(b"garbage")
    with server_process(models, *control) as server, Client(server.address) as client:
        assert client.classify(plain(200, 10, 10)).version == "1"
        assert client.health()
        assert client.health("tiny")
        told = {one.version: (one.state, one.reason) for one in client.models()}
        listed = vistazo("models", "--server", server.address, env={"COLUMNS": "500"}).stdout
        server.terminate()
        assert server.wait() == 0

    assert {version: state for version, (state, _) in told.items()} == {"1": "READY", "2": "FAILED"}
    assert "is not the file that its manifest describes" in told["2"][1]
    assert re.search(r"tiny *│ *1 *│ *READY *│", listed), listed
    assert re.search(r"tiny *│ *2 *│ *FAILED:", listed), listed
    assert "is not the file that its manifest describes" in listed
    said = [line for line in server.log if line["event"] == "lower_version_serves"]
    assert [(line["model"], line["version"], line["instead_of"]) for line in said] == [("tiny", "1", ["2"])]
    assert [line["level"] for line in said] == ["warning"]


async def test_what_stands_in_is_asked_until_the_failed_version_loads_and_nobody_loses_an_answer(models):
    folder = write_model(models, version=2)
    (folder / "model.onnx").write_bytes(b"garbage")
    async with serving(models, model_control="poll", poll_seconds=0.02) as server:
        answered: Counter[str] = Counter()
        ended = False

        async def ask() -> None:
            while not ended:
                answered[(await server.classify(RED)).version] += 1

        askers = [asyncio.create_task(ask()) for _ in range(4)]
        await until(lambda: answered["1"] > 20)
        # While it goes on failing, nothing is loaded and nothing reloaded.
        assert server.sample("vistazo_model_loads_total", model="tiny", outcome="failed") == 1
        assert server.sample("vistazo_model_loads_total", model="tiny", outcome="ok") == 1
        write_files(folder)
        await until(lambda: answered["2"] > 20)
        ended = True
        await asyncio.gather(*askers)

        await until(lambda: not series_of(server, "1"))
        assert await listed(server) == [("tiny", "2", pb.READY)]
        assert await server.health_of("tiny") == "SERVING"
        assert server.sample("vistazo_model_loads_total", model="tiny", outcome="ok") == 2


async def test_the_protocols_load_is_refused_and_says_which_version_serves(models):
    (write_model(models, version=2) / "model.onnx").write_bytes(b"garbage")
    async with serving(models, model_control="explicit") as server:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        load = open_inference_pb2.RepositoryModelLoadRequest(model_name="tiny")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.RepositoryModelLoad(load, timeout=PATIENCE_SECONDS)
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert re.fullmatch(
            r"model tiny failed to load: version 2: .*; version 1 is serving", failed.value.details()
        )
        assert (await server.classify(RED)).version == "1"
        unload = open_inference_pb2.RepositoryModelUnloadRequest(model_name="tiny")
        await stub.RepositoryModelUnload(unload, timeout=PATIENCE_SECONDS)
        assert await listed(server) == []
        assert await server.health_of("tiny") == "NOT_SERVING"


def test_a_signal_while_a_new_version_loads_ends_the_process_cleanly(models):
    """L0_lifecycle test_shutdown_while_loading."""
    with server_process(models, "--model-control", "poll", "--poll-seconds", "0.05") as server:
        write_model(models, version=2, model=tiny_model(cost=1000))
        with Client(server.address) as client:
            while [one.state for one in client.models()] == ["READY"]:
                assert client.classify(plain(200, 10, 10)).top.label == "red"
        server.terminate()

        assert server.wait() == 0
    assert server.log[-1]["event"] == "stopped"
    assert "Traceback" not in "".join(server.other_output)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--load", "tiny"],
            2,
            r"--load \(VISTAZO_LOAD\): expected --model-control explicit beside --load, .*",
        ),
        (
            ["--version-policy", "newest"],
            2,
            r"--version-policy \(VISTAZO_VERSION_POLICY\): expected latest:N .*",
        ),
        (
            ["--model-control", "explicit", "--load", "tyni"],
            1,
            r"the model 'tyni' is not in the repository .*",
        ),
        (["--version-policy", "7"], 1, r"none of the models .*: tiny: version 7 is not in the repository"),
    ],
)
def test_model_control_that_makes_no_sense_is_one_clear_line(models, arguments, status, message):
    free = ["--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", ""]
    done = vistazo("serve", *free, *arguments)

    assert done.returncode == status
    errors = re.findall(r"^Error: (.*)$", done.stderr, re.MULTILINE)
    assert len(errors) == 1, done.stderr
    assert re.fullmatch(message, errors[0])
