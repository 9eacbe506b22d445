"""A broken model leaves the others serving; a server that cannot serve at all says why in one line."""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import onnx
import pytest
from google.protobuf import json_format

from support.process import server_process, vistazo
from support.serving import labels, raw, serving, settings_for
from support.tiny import SIDE, plain, tiny_manifest, tiny_model, write_model
from vistazo_client import Client
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import manifest_pb2
from vistazo_server.errors import StartupError
from vistazo_server.server import running
from vistazo_server.settings import Settings

RED = raw(plain(200, 10, 10))


def edit(change: Callable[[manifest_pb2.ModelManifest], object]) -> Callable[[Path], None]:
    """Return what changes a version folder's manifest."""

    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json_format.Parse(path.read_text(), manifest_pb2.ModelManifest())
        change(manifest)
        path.write_text(json_format.MessageToJson(manifest, preserving_proto_field_name=True))

    return apply


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def replace_model(model: bytes) -> Callable[[Path], None]:
    """Return what replaces model.onnx by other bytes, with the manifest's checksum to match."""

    def apply(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(model)
        digest = tiny_manifest("", model).model_sha256
        edit(lambda manifest: setattr(manifest, "model_sha256", digest))(folder)

    return apply


def model_of_an_unknown_operator() -> bytes:
    model = tiny_model()
    model.graph.node[0].op_type = "Divine"
    return model.SerializeToString()


def model_that_fails_when_run() -> bytes:
    """A graph that loads and picks values that are not there."""
    model = tiny_model()
    places = onnx.helper.make_tensor("places", onnx.TensorProto.INT64, [3], [0, 1, 9])
    model.graph.initializer.append(places)
    model.graph.node[-1].output[0] = "answer"
    model.graph.node.append(onnx.helper.make_node("Gather", ["answer", "places"], ["logits"], axis=1))
    return model.SerializeToString()


def resize_input(manifest: manifest_pb2.ModelManifest) -> None:
    manifest.input.height = manifest.preprocessing.crop_height = SIDE * 2


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "model.onnx with a flipped bit": (
        flip_a_byte,
        r"model\.onnx is not the file that its manifest describes: expected sha256 \w{12}…, got \w{12}…; "
        "export the model again",
    ),
    "model.onnx cut in half": (
        lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:200]),
        r"model\.onnx is not the file that its manifest describes",
    ),
    "empty model.onnx": (
        lambda folder: (folder / "model.onnx").write_bytes(b""),
        r"model\.onnx is not the file that its manifest describes",
    ),
    "no model.onnx": (
        lambda folder: (folder / "model.onnx").unlink(),
        r"model\.onnx is missing; export the model again",
    ),
    "a folder in place of model.onnx": (
        lambda folder: ((folder / "model.onnx").unlink(), (folder / "model.onnx").mkdir()),
        r"model\.onnx cannot be read: Is a directory",
    ),
    "an empty version folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        r"model\.onnx is missing: the folder is empty; export the model again, or copy its files there",
    ),
    "a manifest that is no JSON": (
        lambda folder: (folder / "manifest.json").write_text('{"format": 1,'),
        r"manifest\.json cannot be read: .+",
    ),
    "a manifest that is not even text": (
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\0\0"),
        r"manifest\.json cannot be read: .+",
    ),
    "a manifest that is another JSON": (
        lambda folder: (folder / "manifest.json").write_text('{"hello": "world"}'),
        r"manifest\.json cannot be read: .*hello.*",
    ),
    "a manifest of JSON nested without end": (
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
        r"manifest\.json cannot be read: .+",
    ),
    "a manifest with a text for a number": (
        lambda folder: (folder / "manifest.json").write_text('{"format": "one"}'),
        r"manifest\.json cannot be read: .*format.*",
    ),
    "an empty manifest": (
        lambda folder: (folder / "manifest.json").write_text("{}"),
        r"manifest\.json: format: expected 1, got 0; .+",
    ),
    "a manifest of a newer format": (
        edit(lambda manifest: setattr(manifest, "format", 2)),
        r"manifest\.json: format: expected 1, got 2; a newer server may read it",
    ),
    "a manifest of another model": (
        edit(lambda manifest: setattr(manifest, "name", "resnet18")),
        r"manifest\.json: name: expected 'broken', the folder's, got 'resnet18'",
    ),
    "a label too few": (
        edit(lambda manifest: manifest.labels.pop()),
        r"manifest\.json: labels: expected 3, one a class, got 2",
    ),
    "no batch size": (
        edit(lambda manifest: setattr(manifest, "max_batch_size", 0)),
        r"manifest\.json: max_batch_size: expected at least 1, got 0",
    ),
    "an interpolation that is not known": (
        edit(lambda manifest: setattr(manifest.preprocessing, "interpolation", "quadratic")),
        r"manifest\.json: preprocessing\.interpolation: expected one of .*hamming, got 'quadratic'",
    ),
    "a crop of another size than the input": (
        edit(lambda manifest: setattr(manifest.preprocessing, "crop_width", 7)),
        r"manifest\.json: preprocessing: the crop's size differs from the input's",
    ),
    "more classes than the graph has": (
        edit(lambda manifest: (manifest.labels.append("black"), setattr(manifest.output, "classes", 4))),
        r"model\.onnx does not match its manifest: expected .*\[-1, 4\]; got .*\[-1, 3\]",
    ),
    "an input size that is not the graph's": (
        edit(resize_input),
        r"model\.onnx does not match its manifest: expected .*\[-1, 8, 4, 3\].*; got .*\[-1, 4, 4, 3\].*",
    ),
    "an input name that is not the graph's": (
        edit(lambda manifest: setattr(manifest.input, "tensor", "pixels")),
        r"model\.onnx does not match its manifest: expected .*'pixels'.*; got .*'images'.*",
    ),
    "an output name that is not the graph's": (
        edit(lambda manifest: setattr(manifest.output, "tensor", "scores")),
        r"model\.onnx does not match its manifest: expected .*'scores'.*; got .*'logits'.*",
    ),
    "a model.onnx that is none, with its checksum": (
        replace_model(b"This is no ONNX model."),
        r"model\.onnx is not a model that ONNX Runtime can run: .+",
    ),
    "a graph with an operator that does not exist": (
        replace_model(model_of_an_unknown_operator()),
        r"model\.onnx is not a model that ONNX Runtime can run: .*Divine.*",
    ),
    "a graph that fails when it is run": (
        replace_model(model_that_fails_when_run()),
        r"model\.onnx fails at batch \d+: .+",
    ),
}


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that another listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_model_says_why_and_leaves_the_others_serving(models, name):
    breaking, reason = BROKEN[name]
    folder = write_model(models, "broken")
    breaking(folder)
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.classify(RED, model="broken")
        answer = await server.classify(RED, model="tiny")
        listed = (await server.stub.ListModels(pb.ListModelsRequest())).models
        one = await server.stub.GetModel(pb.GetModelRequest(name="broken"))
        health = {name: await server.health_of(name) for name in ("", "broken", "tiny")}
        ready = {
            name: server.sample("vistazo_model_ready", model=name, version="1") for name in ("broken", "tiny")
        }

    assert labels(answer.results[0])[0] == "red"
    assert [(model.name, model.state) for model in listed] == [("broken", pb.FAILED), ("tiny", pb.READY)]
    assert one == listed[0]
    assert one.device == ""
    assert re.search(reason, one.reason), one.reason
    assert one.reason.isprintable()
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failed.value.details() == f"model broken failed to load: {one.reason}"
    assert health == {"": "SERVING", "broken": "NOT_SERVING", "tiny": "SERVING"}
    assert ready == {"broken": 0, "tiny": 1}


async def test_a_server_whose_models_are_all_broken_does_not_start(models):
    flip_a_byte(models / "tiny" / "1")
    (write_model(models, "other") / "model.onnx").unlink()
    with pytest.raises(StartupError) as failed:
        async with serving(models):
            pass

    assert re.fullmatch(
        r"none of the models in .*models could be loaded: other: .*model\.onnx is missing; "
        r"export the model again; "
        r"tiny: .*model\.onnx is not the file that its manifest describes.*",
        str(failed.value),
    )


def hidden_only(models: Path) -> None:
    """What an export that was killed leaves."""
    write_model(models, ".staging-resnet18")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda models: None,
            r"the model repository .*models is no folder; make one with `vistazo export .*`.*",
        ),
        (lambda models: models.write_text(""), r"the model repository .*models is no folder; .*"),
        (Path.mkdir, r"the model repository .*models has no <name>/<version>/ folder; fill it with .*"),
        (hidden_only, r"the model repository .*models has no <name>/<version>/ folder; .*"),
        (
            lambda models: (models / "tiny" / "latest").mkdir(parents=True),
            r"the model repository .*models has no <name>/<version>/ folder; .*",
        ),
    ],
    ids=["missing", "a file", "empty", "only hidden folders", "only versions that are no numbers"],
)
async def test_a_repository_without_models_does_not_start(tmp_path, make, message):
    make(tmp_path / "models")
    with pytest.raises(StartupError) as failed:
        async with running(settings_for(tmp_path / "models")):
            pass

    assert re.fullmatch(message, str(failed.value))


async def test_files_and_hidden_folders_beside_the_models_are_not_models(models):
    (models / "README.txt").write_text("hello")
    (models / "tiny" / "config.pbtxt").write_text("")
    (models / "tiny" / ".2").mkdir()
    (models / "notes").mkdir()
    hidden_only(models)
    async with serving(models) as server:
        listed = (await server.stub.ListModels(pb.ListModelsRequest())).models

    assert [(model.name, model.version) for model in listed] == [("tiny", "1")]


async def test_a_port_in_use_is_one_clear_line(models, taken_port):
    with pytest.raises(StartupError) as failed:
        async with running(settings_for(models, listen=f"127.0.0.1:{taken_port}")):
            pass

    message = rf"cannot listen on 127\.0\.0\.1:{taken_port}: .*in use.*; choose another with --listen"
    assert re.fullmatch(message, str(failed.value))


async def test_a_second_server_on_the_same_port_is_refused_and_the_first_goes_on(models):
    async with serving(models) as server:
        with pytest.raises(StartupError):
            async with running(settings_for(models, listen=server.address)):
                pass
        assert labels((await server.classify(RED)).results[0])[0] == "red"


async def test_a_metrics_port_in_use_is_one_clear_line(models, taken_port):
    with pytest.raises(StartupError) as failed:
        async with running(settings_for(models, metrics_listen=f"127.0.0.1:{taken_port}")):
            pass

    assert str(failed.value) == (
        f"cannot serve metrics on 127.0.0.1:{taken_port}: Address already in use; "
        "choose another with --metrics-listen"
    )


async def test_a_failed_start_frees_the_ports_that_it_took(models, taken_port):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    with pytest.raises(StartupError):
        async with running(
            settings_for(models, metrics_listen=f"127.0.0.1:{free}", listen=f"127.0.0.1:{taken_port}")
        ):
            pass
    async with serving(models, metrics_listen=f"127.0.0.1:{free}") as server:
        assert server.server.metrics_port == free


# The real command


def one_error_line(output: str) -> str:
    """Return the line after "Error: ", which is all that the command said of it."""
    errors = re.findall(r"^Error: (.*)$", output, re.MULTILINE)
    assert len(errors) == 1, output
    assert "Traceback" not in output
    return errors[0]


def test_the_command_with_a_port_in_use_exits_1_with_one_line(models, taken_port):
    done = vistazo("serve", "--models", models, "--listen", f"127.0.0.1:{taken_port}", "--metrics-listen", "")

    assert done.returncode == 1
    assert one_error_line(done.stderr).startswith(f"cannot listen on 127.0.0.1:{taken_port}: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_the_command_with_a_metrics_port_in_use_exits_1_with_one_line(models, taken_port):
    done = vistazo(
        "serve", "--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", f"127.0.0.1:{taken_port}"
    )

    assert done.returncode == 1
    assert one_error_line(done.stderr).startswith(f"cannot serve metrics on 127.0.0.1:{taken_port}: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_the_command_without_a_repository_exits_1_with_one_line(tmp_path):
    done = vistazo(
        "serve", "--models", tmp_path / "none", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"
    )

    assert done.returncode == 1
    assert one_error_line(done.stderr).startswith(f"the model repository {tmp_path / 'none'} is no folder; ")


def test_the_command_with_only_broken_models_exits_1_and_says_why(models):
    (models / "tiny" / "1" / "model.onnx").unlink()
    done = vistazo(
        "serve", "--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", "", "--log-format", "json"
    )

    assert done.returncode == 1
    assert re.match(
        r"none of the models in .* could be loaded: tiny: .*model\.onnx is missing",
        one_error_line(done.stderr),
    )


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--listen", "8001"], {}, r"--listen \(VISTAZO_LISTEN\): expected HOST:PORT .*, got '8001'"),
        (["--listen", "127.0.0.1:99999"], {}, r"--listen \(VISTAZO_LISTEN\): expected HOST:PORT .*"),
        (["--queue-limit", "0"], {}, r"--queue-limit \(VISTAZO_QUEUE_LIMIT\): .*greater than 0.*, got '0'"),
        ([], {"VISTAZO_QUEUE_LIMIT": "many"}, r"--queue-limit \(VISTAZO_QUEUE_LIMIT\): .*, got 'many'"),
        (
            [],
            {"VISTAZO_DEVICE": "tpu"},
            r"--device \(VISTAZO_DEVICE\): .*'cpu' or 'cuda'.*, got 'tpu'",
        ),
        (["--grace-seconds", "-1"], {}, r"--grace-seconds \(VISTAZO_GRACE_SECONDS\): .*, got '-1'"),
        (
            ["--max-message-mb", "4000"],
            {},
            r"--max-message-mb \(VISTAZO_MAX_MESSAGE_MB\): .*2047.*",
        ),
        (["--grace-seconds", "nan"], {}, r"--grace-seconds \(VISTAZO_GRACE_SECONDS\): .*, got 'nan'"),
        (
            ["--max-image-megapixels", "inf"],
            {},
            r"--max-image-megapixels \(VISTAZO_MAX_IMAGE_MEGAPIXELS\): .*finite.*, got 'inf'",
        ),
    ],
)
def test_a_bad_setting_is_a_usage_error_that_names_its_flag_and_its_variable(models, arguments, env, message):
    free = ["--models", models, "--listen", "127.0.0.1:0", "--metrics-listen", ""]
    done = vistazo("serve", *free, *arguments, env=env)

    assert done.returncode == 2
    assert re.fullmatch(message, one_error_line(done.stderr)), done.stderr


def test_variables_are_honoured_and_a_flag_wins_over_its_variable(models):
    env = {
        "VISTAZO_LISTEN": "127.0.0.1:0",
        "VISTAZO_METRICS_LISTEN": "",
        "VISTAZO_MAX_BATCH_SIZE": "2",
        "VISTAZO_MAX_IMAGES_PER_REQUEST": "7",
        "VISTAZO_MODELS": "/nowhere",
    }
    with server_process(models, "--max-batch-size", "3", env=env) as server:
        assert server.metrics_port is None
        with Client(server.address) as client:
            assert client.model("tiny").max_batch_size == 3
            assert client.classify(plain(200, 10, 10)).top.label == "red"
        with grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            method = channel.unary_unary(
                "/vistazo.v1.ClassificationService/Classify",
                request_serializer=pb.ClassifyRequest.SerializeToString,
            )
            with pytest.raises(grpc.RpcError) as failed:
                method(pb.ClassifyRequest(images=[RED] * 8), timeout=30)
        assert failed.value.details() == "images: expected at most 7, got 8"


def test_the_help_lists_every_setting_with_its_flag_variable_and_default():
    done = vistazo("serve", "--help")

    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for name, field in Settings.model_fields.items():
        flag, variable = "--" + name.replace("_", "-"), f"VISTAZO_{name.upper()}"
        default = "none" if field.default == "" else field.default
        assert flag in text
        assert f"[env: {variable}; default: {default}]" in text


def test_the_log_is_one_json_object_a_line_and_tells_the_life_of_the_server(models):
    (write_model(models, "broken") / "model.onnx").unlink()
    with server_process(models) as server:
        server.terminate()

        assert server.wait() == 0
    assert server.other_output == []
    events = [line["event"] for line in server.log]
    assert events == ["listening", "model_failed", "model_ready", "ready", "draining", "stopped"]
    failed = server.log[1]
    assert failed["level"] == "error"
    assert failed["model"] == "broken"
    assert failed["reason"].endswith("model.onnx is missing; export the model again")
