"""Bearer tokens: who may call what, what the others are told, and tokens that change while it serves."""

import asyncio

import grpc
import pytest
import structlog
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from support.process import server_process, vistazo
from support.serving import PATIENCE_SECONDS, Serving, labels, raw, serving, until
from support.tiny import plain
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import classification_pb2_grpc as pb_grpc
from vistazo_proto import open_inference_pb2, open_inference_pb2_grpc
from vistazo_server.errors import PermissionDeniedError, StartupError, UnauthenticatedError
from vistazo_server.rpc import stream
from vistazo_server.rpc import tokens as access
from vistazo_server.rpc.tokens import NEEDS, Caller, Needs, Scope, Tokens, authorize, parse_tokens

RED = raw(plain(200, 10, 10))
INFERENCE, CONTROL, BOTH = "inference-token-0123", "control-token-01234567", "both-token-0123456789"
UNKNOWN = "unknown-token-0123456"
FILE = f"""
# Who, what for, token
camera inference {INFERENCE}
deployer model-control {CONTROL}
admin inference,model-control {BOTH}
"""


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(FILE)
    return path


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")]


async def status(call) -> str:
    """Return how a call ended."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def classify(server: Serving, metadata=()):
    return server.stub.Classify(pb.ClassifyRequest(images=[RED]), metadata=metadata, timeout=PATIENCE_SECONDS)


# The table


def methods_of(*files) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_every_rpc_that_is_declared_says_what_it_needs():
    declared = methods_of(
        pb.DESCRIPTOR, open_inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR
    )

    # Newer versions of the health service have it.
    assert set(NEEDS) - {"/grpc.health.v1.Health/List"} == declared - {"/grpc.health.v1.Health/List"}


async def test_every_rpc_that_is_served_says_what_it_needs(models):
    async with serving(models, reflection=True) as server:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_SECONDS)
        services = [service.name for service in (await call.read()).list_services_response.service]

    served = {
        f"/{service}/{method.name}"
        for service in services
        for method in Default().FindServiceByName(service).methods
    }
    assert len(services) >= 3
    assert served <= set(NEEDS)


def test_only_health_needs_nothing():
    free = {method.rpartition("/")[2] for method, needs in NEEDS.items() if needs is Needs.NOTHING}

    assert free == {"Check", "List", "Watch", "ServerLive", "ServerReady", "ModelReady"}


def test_an_rpc_that_is_not_in_the_table_is_refused_to_everybody(tokens):
    with pytest.raises(PermissionDeniedError, match="nobody"):
        authorize(Tokens(tokens), "/vistazo.v1.ClassificationService/Forgotten", bearer(BOTH))
    with pytest.raises(UnauthenticatedError):
        authorize(Tokens(tokens), "/vistazo.v1.ClassificationService/Forgotten", ())


@pytest.mark.parametrize(("method", "needs"), NEEDS.items())
def test_each_rpc_takes_the_tokens_of_its_scope_and_no_other(tokens, method, needs):
    known = Tokens(tokens)

    def outcome(metadata) -> str:
        try:
            authorize(known, method, metadata)
        except (UnauthenticatedError, PermissionDeniedError) as error:
            return error.code.name
        return "OK"

    expected = {
        Needs.NOTHING: ["OK"] * 5,
        Needs.ANY_TOKEN: ["UNAUTHENTICATED", "UNAUTHENTICATED", "OK", "OK", "OK"],
        Needs.INFERENCE: ["UNAUTHENTICATED", "UNAUTHENTICATED", "OK", "PERMISSION_DENIED", "OK"],
        Needs.MODEL_CONTROL: ["UNAUTHENTICATED", "UNAUTHENTICATED", "PERMISSION_DENIED", "OK", "OK"],
    }
    asked = [(), *(bearer(token) for token in (UNKNOWN, INFERENCE, CONTROL, BOTH))]
    assert [outcome(metadata) for metadata in asked] == expected[needs]


# Over the wire


async def test_without_a_token_or_with_a_wrong_one_nobody_is_answered(models, tokens):
    async with serving(models, tokens=tokens) as server:
        for metadata in (
            (),
            bearer(UNKNOWN),
            bearer(INFERENCE[:-1]),
            bearer(INFERENCE.upper()),
            bearer(""),
            [("authorization", INFERENCE)],
            [("authorization", f"Basic {INFERENCE}")],
            bearer(INFERENCE) * 2,
            bearer(UNKNOWN) + bearer(INFERENCE),
        ):
            assert await status(classify(server, metadata)) == "UNAUTHENTICATED"
        assert labels((await classify(server, bearer(INFERENCE))).results[0])[0] == "red"
        assert await status(classify(server, [("authorization", f"bearer  {INFERENCE}")])) == "OK"


async def test_a_token_without_the_scope_is_denied_and_may_still_look(models, tokens):
    async with serving(models, tokens=tokens) as server:
        assert await status(classify(server, bearer(CONTROL))) == "PERMISSION_DENIED"
        listed = server.stub.ListModels(pb.ListModelsRequest(), metadata=bearer(CONTROL))
        assert [model.name for model in (await listed).models] == ["tiny"]
        assert await status(server.stub.ListModels(pb.ListModelsRequest())) == "UNAUTHENTICATED"


async def test_open_inference_asks_for_the_same_tokens(models, tokens):
    async with serving(models, tokens=tokens, model_control="explicit", load="*") as server:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        assert (await stub.ServerLive(open_inference_pb2.ServerLiveRequest())).live
        infer = open_inference_pb2.ModelInferRequest(model_name="tiny")
        load = open_inference_pb2.RepositoryModelLoadRequest(model_name="tiny")
        asked = (UNKNOWN, INFERENCE, CONTROL)
        endings = {
            name: [await status(call(request, metadata=bearer(token))) for token in asked]
            for name, call, request in (
                ("infer", stub.ModelInfer, infer),
                ("load", stub.RepositoryModelLoad, load),
            )
        }

    # Without a tensor: it got as far as that.
    assert endings["infer"] == ["UNAUTHENTICATED", "INVALID_ARGUMENT", "PERMISSION_DENIED"]
    assert endings["load"] == ["UNAUTHENTICATED", "PERMISSION_DENIED", "OK"]


def test_the_log_says_who_loaded_a_model(models, tokens):
    flags = ["--tokens", str(tokens), "--model-control", "explicit", "--load", "*"]
    with (
        server_process(models, *flags) as server,
        grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = open_inference_pb2.RepositoryModelUnloadRequest(model_name="tiny")
        stub.RepositoryModelUnload(request, metadata=bearer(CONTROL), timeout=PATIENCE_SECONDS)
        server.terminate()
        assert server.wait() == 0

    callers = [(line["event"], line["caller"]) for line in server.log if "caller" in line]
    assert [(event, caller) for event, caller in callers if caller == "deployer"] != []


async def test_streams_and_reflection_ask_for_tokens_and_health_does_not(models, tokens):
    async with serving(models, tokens=tokens, reflection=True) as server:
        call = server.stub.ClassifyStream(timeout=PATIENCE_SECONDS)
        assert await status(call.read()) == "UNAUTHENTICATED"
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        asked = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=PATIENCE_SECONDS
        )
        assert await status(asked.read()) == "UNAUTHENTICATED"

        assert await server.health_of() == "SERVING"
        watching = server.health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()


async def test_a_stranger_s_message_is_not_even_read(models, tokens):
    """It is over the limit of a message, which the server would say if it looked."""
    async with serving(models, tokens=tokens, max_message_mb=1) as server:
        huge = pb.ClassifyRequest(images=[pb.Image(encoded=bytes(8 << 20))])

        assert await status(server.stub.Classify(huge, timeout=PATIENCE_SECONDS)) == "UNAUTHENTICATED"
        call = server.stub.Classify(huge, timeout=PATIENCE_SECONDS, metadata=bearer(INFERENCE))
        assert await status(call) == "RESOURCE_EXHAUSTED"


async def test_refusals_are_counted_as_rpcs(models, tokens):
    async with serving(models, tokens=tokens) as server:
        for metadata in ((), (), bearer(CONTROL)):
            await status(classify(server, metadata))
        method = {"grpc_service": "vistazo.v1.ClassificationService", "grpc_method": "Classify"}
        counted = {
            code: server.sample("grpc_server_handled_total", grpc_type="unary", grpc_code=code, **method)
            for code in ("OK", "UNAUTHENTICATED", "PERMISSION_DENIED")
        }

    assert counted == {"OK": 0, "UNAUTHENTICATED": 2, "PERMISSION_DENIED": 1}


# Tokens that change


async def test_tokens_are_rotated_without_a_refused_request(models, tokens, monkeypatch):
    monkeypatch.setattr(access, "CHECK_SECONDS", 0.0)
    new, refused, answered = "new-token-0123456789", [], 0
    current, ended = INFERENCE, asyncio.Event()

    async with serving(models, tokens=tokens) as server:

        async def call() -> None:
            nonlocal answered
            while not ended.is_set():
                token = current
                if (code := await status(classify(server, bearer(token)))) != "OK":
                    refused.append(code)
                answered += 1

        async with asyncio.TaskGroup() as callers:
            for _ in range(4):
                callers.create_task(call())
            for text, token in (
                (FILE + f"camera inference {new}\n", new),
                (f"camera inference {new}\n", new),
            ):
                tokens.write_text(text)
                current = token
                seen = answered
                await until(lambda seen=seen: answered > seen + 20)
            ended.set()
        old = await status(classify(server, bearer(INFERENCE)))

    assert refused == []
    assert old == "UNAUTHENTICATED"


def open_classify(server: Serving, token: str):
    """Return a stream, and a request of it that is answered."""
    call = server.stub.ClassifyStream(timeout=PATIENCE_SECONDS, metadata=bearer(token))
    return call, pb.ClassifyStreamRequest(id="a", request=pb.ClassifyRequest(images=[RED]))


def open_infer(server: Serving, token: str):
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    call = stub.ModelStreamInfer(timeout=PATIENCE_SECONDS, metadata=bearer(token))
    return call, open_inference_pb2.ModelInferRequest(id="a", model_name="nobody")


@pytest.mark.parametrize("writing", [False, True])
@pytest.mark.parametrize(
    ("left", "ended"),
    [
        (f"admin inference {BOTH}", "UNAUTHENTICATED"),
        (f"admin inference {BOTH}\ncamera model-control {INFERENCE}", "PERMISSION_DENIED"),
    ],
)
@pytest.mark.parametrize("open_stream", [open_classify, open_infer])
async def test_a_stream_ends_with_its_token_and_no_other(
    models, tokens, monkeypatch, open_stream, left, ended, writing
):
    monkeypatch.setattr(access, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(stream, "RECHECK_SECONDS", 1000.0 if writing else 0.02)
    async with serving(models, tokens=tokens) as server:
        revoked, request = open_stream(server, INFERENCE)
        other, _ = open_stream(server, BOTH)
        for call in (revoked, other):
            await call.write(request)
            await call.read()
        tokens.write_text(left)
        if writing:
            await revoked.write(request)

        assert await status(revoked.read()) == ended
        await other.write(request)
        assert await other.read() != grpc.aio.EOF
        await other.done_writing()
        assert await status(other.read()) == "OK"


async def test_what_a_stream_had_asked_before_its_token_ended_is_answered(slow_models, tokens, monkeypatch):
    monkeypatch.setattr(access, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(stream, "RECHECK_SECONDS", 0.02)
    async with serving(slow_models, tokens=tokens) as server:
        call, request = open_classify(server, INFERENCE)
        for _ in range(5):
            await call.write(request)
        await until(lambda: server.in_flight() == 5)
        tokens.write_text(f"admin inference {BOTH}")

        answers = [await call.read() for _ in range(5)]
        assert await status(call.read()) == "UNAUTHENTICATED"
    assert [labels(answer.response.results[0])[0] for answer in answers] == ["red"] * 5


async def test_a_stream_goes_on_while_its_token_is_on_any_line(models, tokens, monkeypatch):
    monkeypatch.setattr(access, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(stream, "RECHECK_SECONDS", 0.001)
    async with serving(models, tokens=tokens) as server:
        call, request = open_classify(server, INFERENCE)
        for number in range(20):
            tokens.write_text(f"# {number}\nother{number} inference,model-control {INFERENCE}\n")
            await asyncio.sleep(0.005)
            await call.write(request)
            assert (await call.read()).id == "a"
        await call.done_writing()
        assert await status(call.read()) == "OK"


def test_a_changed_file_is_in_force_after_a_second(tokens):
    now = 100.0
    known = Tokens(tokens, clock=lambda: now)
    tokens.write_text(f"camera inference {UNKNOWN}\n")

    now += access.CHECK_SECONDS / 2
    assert known.caller(UNKNOWN) is None
    now += access.CHECK_SECONDS
    assert known.caller(UNKNOWN) == Caller("camera", frozenset({Scope.INFERENCE}))
    assert known.caller(INFERENCE) is None


@pytest.mark.parametrize("damage", ["gone", "camera inference\n", "camera inference short\n", "\xe9\xff"])
def test_a_file_that_cannot_be_used_leaves_the_old_tokens_in_force_and_is_logged_once(tokens, damage):
    now = 100.0
    known = Tokens(tokens, clock=lambda: now)
    if damage == "gone":
        tokens.unlink()
    else:
        tokens.write_text(damage, encoding="latin-1")

    with structlog.testing.capture_logs() as log:
        for _ in range(3):
            now += 2 * access.CHECK_SECONDS
            assert known.caller(INFERENCE) is not None
        tokens.write_text(f"camera inference {UNKNOWN}\n")
        now += 2 * access.CHECK_SECONDS
        assert known.caller(INFERENCE) is None

    assert [line["event"] for line in log] == ["tokens_unusable", "tokens_reloaded"]


def test_the_last_token_can_be_taken_away(tokens):
    now = 100.0
    known = Tokens(tokens, clock=lambda: now)
    tokens.write_text("# nobody\n")
    now += 2 * access.CHECK_SECONDS

    assert known.caller(INFERENCE) is None


# The file


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("camera inference", "line 2: expected NAME SCOPES TOKEN, got 2 fields"),
        (f"camera inference {UNKNOWN} more", "line 2: expected NAME SCOPES TOKEN, got 4 fields"),
        ("camera inference hunter2", "line 2: expected a token of at least 16 characters, got 7"),
        (
            f"camera {UNKNOWN} inference-and-more",
            "line 2: expected scopes out of inference and",
        ),
        (f"camera inferences {UNKNOWN}", "line 2: expected scopes out of"),
        (f"camera inference, {UNKNOWN}", "line 2: expected scopes out of"),
        (f"cam\x1bera inference {UNKNOWN}", "line 2: expected a name of at most 64 letters"),
        (f"a inference {UNKNOWN}\nb inference {UNKNOWN}", "line 3: this token is on another line, too"),
    ],
)
def test_a_bad_line_is_named_and_no_token_is_quoted(tmp_path, line, said):
    with pytest.raises(StartupError) as failed:
        parse_tokens(f"# first\n{line}\n".encode(), tmp_path / "tokens")

    assert said in str(failed.value)
    assert UNKNOWN not in str(failed.value)
    assert "hunter2" not in str(failed.value)


def test_an_empty_file_is_a_mistake_at_the_start(models, tmp_path):
    (tmp_path / "tokens").write_text("# none yet\n")
    ended = vistazo("serve", "--models", models, "--tokens", tmp_path / "tokens", "--listen", "127.0.0.1:0")

    assert ended.returncode == 1
    assert "expected at least one line NAME SCOPES TOKEN, got none" in " ".join(ended.stderr.split())


# Exposure


@pytest.mark.parametrize(
    ("listen", "settings", "warned"),
    [
        ("0.0.0.0:0", {}, ["reflection_off"]),
        ("0.0.0.0:0", {"model_control": "explicit", "load": "*"}, ["model_control_open", "reflection_off"]),
        ("127.0.0.1:0", {"model_control": "explicit", "load": "*"}, []),
        ("0.0.0.0:0", {"reflection": True}, []),
    ],
)
async def test_what_others_can_reach_is_said(models, listen, settings, warned):
    with structlog.testing.capture_logs() as log:
        async with serving(models, listen=listen, **settings):
            pass

    said = [line["event"] for line in log if line["event"] in ("model_control_open", "reflection_off")]
    assert said == warned


# Secrets


def test_no_token_is_ever_in_the_log(models, tokens):
    flags = ["--tokens", str(tokens), "--log-level", "debug", "--reflection"]
    with (
        server_process(models, *flags, env={"VISTAZO_LISTEN": "0.0.0.0:0"}) as server,
        grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        stub = pb_grpc.ClassificationServiceStub(channel)
        for token in (INFERENCE, CONTROL, UNKNOWN):
            for value in (f"Bearer {token}", token, f"Basic {token}"):
                metadata = [("authorization", value)]
                try:
                    stub.Classify(pb.ClassifyRequest(images=[RED]), metadata=metadata, timeout=30)
                except grpc.RpcError:
                    continue
        tokens.write_text(FILE.replace(INFERENCE, UNKNOWN) + f"broken {CONTROL}\n")
        server.terminate()
        assert server.wait() == 0

    said = str(server.log) + str(server.other_output)
    assert [token for token in (INFERENCE, CONTROL, BOTH, UNKNOWN) if token in said] == []
    events = [line["event"] for line in server.log]
    assert events.count("request_failed") >= 8
    # Anybody on the way could read them.
    assert "tokens_in_clear" in events
