"""Batch-mates cannot influence each other: imported or bare, over both APIs, beside extreme strangers."""

import asyncio
import json
from asyncio import to_thread
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from support.foreign import CLASSES, SIDE, classifier
from support.graphs import write_graph
from support.mixing import HARMLESS, MIXING, in_pairs, trained
from support.serving import Serving, probabilities, raw, serving
from vistazo_client.cli import main
from vistazo_export.errors import GraphError, ParityError
from vistazo_export.importer import ImportRequest, import_model
from vistazo_export.progress import Progress
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import open_inference_pb2 as oi
from vistazo_proto import open_inference_pb2_grpc as oi_grpc

TYPES = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(uint8)": "UINT8"}
STRANGE = (1e4, -1e4, float("nan"), float("inf"), 0.0)


def add_model(models: Path, name: str, model: onnx.ModelProto, preprocess: str = "none") -> list[str]:
    """Import a graph, and put it there bare, too; return what was warned of."""
    source = models.parent / f"{name}.onnx"
    source.write_bytes(model.SerializeToString())
    said: list[str] = []
    import_model(ImportRequest(source, name, models, preprocess=preprocess), Progress(warning=said.append))
    write_graph(models, f"{name}-bare", model)
    return said


def manifest_of(models: Path, name: str) -> dict[str, object]:
    manifest: dict[str, object] = json.loads((models / name / "1" / "manifest.json").read_text())
    return manifest


async def infer(server: Serving, model: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Return the output "y" for a request of some samples."""
    stub = oi_grpc.GRPCInferenceServiceStub(server.channel)
    datatypes = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
    request = oi.ModelInferRequest(
        model_name=model,
        inputs=[
            oi.ModelInferRequest.InferInputTensor(
                name=name, datatype=datatypes[str(array.dtype)], shape=array.shape
            )
            for name, array in feeds.items()
        ],
        raw_input_contents=[array.tobytes() for array in feeds.values()],
    )
    response = await stub.ModelInfer(request, timeout=30)
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)


def feeds_like(
    session: onnxruntime.InferenceSession, samples: int, value: float | None
) -> dict[str, np.ndarray]:
    """Return random samples, or such that are full of one value."""
    random = np.random.default_rng(5)
    feeds = {}
    for each in session.get_inputs():
        shape = (samples, *each.shape[1:])
        if each.type == "tensor(float)":
            whole = random.random(shape) if value is None else np.full(shape, value)
            feeds[each.name] = whole.astype(np.float32)
        else:
            most = 1 if value is None or not np.isfinite(value) else 200 if value > 0 else 0
            dtype = np.uint8 if each.type == "tensor(uint8)" else np.int64
            feeds[each.name] = np.full(shape, most, dtype)
    return feeds


@pytest.mark.parametrize("kind", MIXING)
async def test_what_strangers_send_changes_no_answer_of_a_graph_that_mixes(tmp_path: Path, kind: str):
    models, (make, reason) = tmp_path / "models", MIXING[kind]
    model = make()
    said = await to_thread(add_model, models, "imported", model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    mine = feeds_like(session, 3, None)
    alone = np.concatenate(
        [session.run(None, {name: rows[at : at + 1] for name, rows in mine.items()})[0] for at in range(3)]
    )
    async with serving(models, max_batch_size=8, queue_delay_ms=20) as server:
        for name in ("imported", "imported-bare"):
            for value in STRANGE:
                answers = await asyncio.gather(
                    infer(server, name, feeds_like(session, 2, value)),
                    infer(server, name, mine),
                    infer(server, name, feeds_like(session, 1, value)),
                )
                np.testing.assert_allclose(answers[1], alone, rtol=1e-5, atol=1e-6)
        told = {one.name: one for one in (await server.stub.ListModels(pb.ListModelsRequest())).models}

    manifest = manifest_of(models, "imported")
    assert manifest["max_batch_size"] == 1
    assert reason in str(manifest["one_by_one"])
    assert any("run one by one" in line and str(manifest["one_by_one"]) in line for line in said)
    assert told["imported"].one_by_one == manifest["one_by_one"]
    assert told["imported-bare"].max_batch_size == 1
    assert reason in told["imported-bare"].one_by_one != ""


async def test_look_alikes_stay_batched(tmp_path: Path):
    models = tmp_path / "models"
    for number, make in enumerate(HARMLESS.values()):
        assert await to_thread(add_model, models, f"m{number}", make()) == []
        assert manifest_of(models, f"m{number}")["max_batch_size"] == 32
        assert manifest_of(models, f"m{number}")["one_by_one"] == ""
    async with serving(models, max_batch_size=8) as server:
        for one in (await server.stub.ListModels(pb.ListModelsRequest())).models:
            assert (one.state, one.max_batch_size, one.one_by_one) == (pb.READY, 8, ""), one.name


def images_mixed(kind: str, batch: int | str = "batch", *, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a classifier of images that quantises, or centres, the scores of a batch as one."""
    model = classifier(batch=batch, dtype=dtype)
    model.graph.node[-1].output[0] = "own"
    if kind == "quantised":
        model.graph.node.append(helper.make_node("DynamicQuantizeLinear", ["own"], ["q", "s", "z"]))
        model.graph.node.append(helper.make_node("DequantizeLinear", ["q", "s", "z"], ["scores"]))
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.array([[0.9]], np.float32), "most"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
        model.graph.node.append(helper.make_node("ReduceMax", ["own", "zero"], ["common"]))
        model.graph.node.append(helper.make_node("Mul", ["common", "most"], ["part"]))
        model.graph.node.append(helper.make_node("Sub", ["own", "part"], ["scores"]))
    return model


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.UINT8])
@pytest.mark.parametrize("kind", ["quantised", "centred"])
async def test_images_beside_black_and_white_strangers_keep_their_answers(
    tmp_path: Path, kind: str, dtype: int
):
    models = tmp_path / "models"
    said = await to_thread(add_model, models, "imported", images_mixed(kind, dtype=dtype), "imagenet")
    images = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in (0, 255, 120)]
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    async with serving(models, max_batch_size=8, queue_delay_ms=20) as server:
        lone = await server.classify(raw(noise), model="imported", top_k=CLASSES)
        strangers = [server.classify(raw(image), model="imported", top_k=CLASSES) for image in images]
        mine = server.classify(raw(noise), raw(images[0]), raw(noise), model="imported", top_k=CLASSES)
        together, *_ = await asyncio.gather(mine, *strangers)

    for at in (0, 2):
        assert probabilities(together.results[at]) == pytest.approx(probabilities(lone.results[0]), abs=1e-6)
    assert together.batch_size == 1
    assert any("run one by one" in line for line in said)


async def test_a_fixed_batch_that_mixes_is_filled_with_the_sample_itself(tmp_path: Path):
    models = tmp_path / "models"
    await to_thread(add_model, models, "imported", images_mixed("centred", 4), "imagenet")
    white, noise = (
        np.full((SIDE, SIDE, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
    )
    async with serving(models) as server:
        lone = await server.classify(raw(noise), model="imported", top_k=CLASSES)
        both = await server.classify(raw(white), raw(noise), model="imported", top_k=CLASSES)

    assert probabilities(both.results[1]) == pytest.approx(probabilities(lone.results[0]), abs=1e-6)
    assert manifest_of(models, "imported")["max_batch_size"] == 1


async def test_a_manifest_that_is_silent_is_tried_and_one_that_speaks_is_believed(tmp_path: Path):
    models = tmp_path / "models"
    await to_thread(add_model, models, "imported", images_mixed("centred"), "imagenet")
    await to_thread(add_model, models, "told", classifier(), "imagenet")
    path = models / "imported" / "1" / "manifest.json"
    silent = manifest_of(models, "imported") | {"max_batch_size": 16}
    del silent["one_by_one"]
    path.write_text(json.dumps(silent))
    path = models / "told" / "1" / "manifest.json"
    path.write_text(json.dumps(manifest_of(models, "told") | {"one_by_one": "its maker says so"}))
    async with serving(models, max_batch_size=8) as server:
        told = {one.name: one for one in (await server.stub.ListModels(pb.ListModelsRequest())).models}
        shown = await to_thread(CliRunner().invoke, main, ["models", "--server", server.address])
        as_json = await to_thread(CliRunner().invoke, main, ["models", "--json", "--server", server.address])

    assert (told["imported"].max_batch_size, told["told"].max_batch_size) == (1, 1)
    assert told["imported"].one_by_one == "ReduceMax over axis 0 is over the batch"
    assert "told version 1 runs its samples one by one: its maker says so" in shown.output
    lines = [json.loads(line) for line in as_json.output.splitlines()]
    assert {line["name"]: line["one_by_one"] for line in lines}["told"] == "its maker says so"


async def test_statistics_of_training_are_refused_by_the_import_and_told_of_a_bare_file(tmp_path: Path):
    with pytest.raises(ParityError, match="differs from run to run on the same input"):
        await to_thread(add_model, tmp_path / "models", "imported", trained())
    write_graph(tmp_path / "models", "bare", trained())
    async with serving(tmp_path / "models") as server:
        bare = await server.stub.GetModel(pb.GetModelRequest(name="bare"))

    assert "in training mode takes the statistics of the batch, and keeps them" in bare.one_by_one


async def test_a_graph_that_mixes_and_cannot_run_a_sample_alone_is_refused(tmp_path: Path):
    with pytest.raises(GraphError, match="cannot run the graph at batch 1"):
        await to_thread(add_model, tmp_path / "models", "imported", in_pairs())
    write_graph(tmp_path / "models", "bare", in_pairs())
    write_graph(tmp_path / "models", "other", HARMLESS["mean of the rest"]())
    async with serving(tmp_path / "models") as server:
        bare = await server.stub.GetModel(pb.GetModelRequest(name="bare"))

    assert bare.state == pb.FAILED
    assert "fails at batch 1" in bare.reason
