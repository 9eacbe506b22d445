"""Independent scores, served: each label's own probability, as the graph says it, alone and in company."""

import asyncio
from asyncio import to_thread
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from support.endings import ended, node, rounded
from support.images import file
from support.serving import PATIENCE_SECONDS, Serving, encoded, probabilities, raw, serving
from vistazo_client import AsyncClient, ScoreKind
from vistazo_export.importer import ImportRequest, import_model
from vistazo_proto import classification_pb2 as pb
from vistazo_proto import open_inference_pb2 as inference
from vistazo_proto.open_inference_pb2_grpc import GRPCInferenceServiceStub
from vistazo_server.inference.raw_tensors import decode_raw, decode_raw_bytes
from vistazo_server.inference.side_thread import at_once

LABELS = ("ant", "bee", "cat", "dog", "elk")
PIXELS = np.random.default_rng(3).integers(0, 256, (7, 8, 8, 3), np.uint8)


def one_score(ending: str, *after: onnx.NodeProto, dims: tuple[int, ...] = (1,)) -> onnx.ModelProto:
    shape = np.array([-1, *dims])
    return ended(
        node(ending, ["logits"], ["s"]),
        *after,
        node("Reshape", ["d" if after else "s", "shape"], ["scores"]),
        classes=1,
        dims=dims,
        shape=shape,
    )


GRAPHS = {
    "sigmoid": ended(node("Sigmoid", ["logits"], ["scores"])),
    "in 8 bits": ended(
        *rounded("logits", "l", "wide"), node("Sigmoid", ["l"], ["s"]), *rounded("s", "scores")
    ),
    "in float16, reshaped": ended(
        node("Sigmoid", ["logits"], ["s"]),
        node("Cast", ["s"], ["h"], to=TensorProto.FLOAT16),
        node("Unsqueeze", ["h", "middle_axis"], ["scores"]),
        dims=(1, 5),
        element=TensorProto.FLOAT16,
    ),
    "before the sigmoid": ended(node("Identity", ["logits"], ["scores"]), scale=1 / 20),
    "binary": one_score("Sigmoid"),
    "binary in 8 bits": one_score("Sigmoid", *rounded("s", "d")),
    "binary before the sigmoid": one_score("Identity"),
    "binary without a dimension": one_score("Sigmoid", dims=()),
    "binary, before the sigmoid, among ones": one_score("Identity", dims=(1, 1)),
}


def is_logits(name: str) -> bool:
    return "before the sigmoid" in name


def labels_of(name: str) -> tuple[str, ...]:
    return ("no", "yes") if "binary" in name else LABELS


def imported(folder: Path, name: str, **said: str) -> Path:
    """Import one of the graphs as the model "m"; return the repository."""
    source, labels = folder / "graph.onnx", folder / "labels.txt"
    onnx.save(GRAPHS[name], source)
    labels.write_text("\n".join(labels_of(name)))
    kind = "independent-logits" if is_logits(name) else ""
    # A file of 8×8 pixels is then what the graph gets.
    how = folder / "how.toml"
    how.write_text('resize_mode = "STRETCH"\ninterpolation = "bilinear"\n')
    fields = {"preprocess": str(how), "output_kind": kind} | said
    import_model(ImportRequest(source, "m", folder / "models", labels=str(labels), **fields))
    return folder / "models"


def run(models: Path, pixels: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime says of pixels, run directly, as the graph gives it."""
    path = models / "m" / "1" / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"pixels": pixels}
    )[0]


def expected(models: Path, name: str, pixels: np.ndarray) -> list[dict[str, float]]:
    """Return the probability of each label for each image, worked out from the graph's own scores."""
    answers = []
    for image in pixels:
        row = run(models, image[np.newaxis]).astype(np.float64).ravel()
        p = 1 / (1 + np.exp(-row)) if is_logits(name) else row
        p = [1 - p[0], p[0]] if "binary" in name else p
        answers.append(dict(zip(labels_of(name), map(float, p), strict=True)))
    return answers


def cut(row: dict[str, float], top_k: int, least: float) -> dict[str, float]:
    best = sorted(row.items(), key=lambda item: -item[1])
    return dict([(label, p) for label, p in best if p >= least][:top_k])


@pytest.mark.parametrize("name", GRAPHS)
async def test_each_label_has_its_own_probability_alone_and_in_company(tmp_path: Path, name: str):
    models = await to_thread(imported, tmp_path, name)
    right = await to_thread(expected, models, name, PIXELS)
    count = len(labels_of(name))
    async with serving(models) as server:
        alone = [await server.classify(raw(image), top_k=count) for image in PIXELS]
        together = await server.classify(*map(raw, PIXELS), top_k=count)
        crowd = await asyncio.gather(*(server.classify(raw(image), top_k=count) for image in PIXELS))
        files = await server.classify(*(encoded(file(image)) for image in PIXELS), top_k=count)

    answers = [[each.results[0] for each in alone], together.results, [each.results[0] for each in crowd]]
    for results in (*answers, files.results):
        for result, row in zip(results, right, strict=True):
            found = probabilities(result)
            assert found == pytest.approx(row, abs=2e-6)
            assert list(found.values()) == sorted(found.values(), reverse=True)
    if "binary" not in name:
        assert max(abs(sum(row.values()) - 1) for row in right) > 0.3


@pytest.mark.parametrize("name", GRAPHS)
async def test_strangers_in_one_batch_get_what_each_asked_for(tmp_path: Path, name: str):
    models = await to_thread(imported, tmp_path, name)
    right = await to_thread(expected, models, name, PIXELS)
    count = len(labels_of(name))
    # Between two probabilities, so that rounding decides nothing.
    between = [sum(sorted(row.values())[-2:]) / 2 for row in right]
    asked = [(1 + at % count, least) for at, least in enumerate([0.0, 1.0, *between[2:]])]
    async with serving(models, queue_delay_ms=20) as server:
        answers = await asyncio.gather(
            *(
                server.classify(raw(image), top_k=top_k, min_probability=least)
                for image, (top_k, least) in zip(PIXELS, asked, strict=True)
            )
        )
        outputs = await infer(server, PIXELS)

    assert max(answer.batch_size for answer in answers) > 1
    for answer, row, (top_k, least) in zip(answers, right, asked, strict=True):
        assert answer.results[0].WhichOneof("outcome") == "predictions"
        if least < 1:
            assert probabilities(answer.results[0]) == pytest.approx(cut(row, top_k, least), abs=2e-6)
    np.testing.assert_allclose(outputs, await to_thread(run, models, PIXELS), atol=2e-6)


async def infer(server: Serving, pixels: np.ndarray, classes: int = 0) -> np.ndarray:
    """Return the output over Open Inference: its tensor, or so many classes as text."""
    request = inference.ModelInferRequest(
        model_name="m",
        inputs=[
            inference.ModelInferRequest.InferInputTensor(name="pixels", datatype="UINT8", shape=pixels.shape)
        ],
        raw_input_contents=[pixels.tobytes()],
    )
    if classes:
        request.outputs.add(name="scores").parameters["classification"].int64_param = classes
    response = await GRPCInferenceServiceStub(server.channel).ModelInfer(request, timeout=PATIENCE_SECONDS)
    (output,), (data,) = response.outputs, response.raw_output_contents
    count = int(np.prod(output.shape))
    if output.datatype == "BYTES":
        flat = np.array([each.decode() for each in at_once(decode_raw_bytes(data, count))], dtype=object)
    else:
        flat = decode_raw(data, output.datatype, count)
    return flat.reshape(tuple(output.shape))


@pytest.mark.parametrize("name", GRAPHS)
async def test_open_inference_gives_the_graphs_own_tensor_and_the_same_order(tmp_path: Path, name: str):
    models = await to_thread(imported, tmp_path, name)
    count = len(labels_of(name))
    async with serving(models) as server:
        tensor = await infer(server, PIXELS)
        texts = await infer(server, PIXELS, classes=count)
        classified = await server.classify(*map(raw, PIXELS), top_k=count)

    direct = await to_thread(run, models, PIXELS)
    assert (tensor.shape, tensor.dtype) == (direct.shape, direct.dtype)
    np.testing.assert_allclose(tensor, direct, atol=2e-6)
    assert texts.shape == (len(PIXELS), count)
    for row, scores, result in zip(texts, direct, classified.results, strict=True):
        found = {}
        for text in row:
            value, index, label = text.split(":")
            assert labels_of(name)[int(index)] == label
            found[label] = float(value)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        p = probabilities(result)
        assert all(p[one] >= p[other] for one, other in zip(found, list(found)[1:], strict=False))
        if "binary" in name:
            assert found["yes"] == pytest.approx(float(scores.ravel()[0]), abs=2e-6)
            assert found["no"] == pytest.approx(
                -found["yes"] if is_logits(name) else 1 - found["yes"], abs=2e-6
            )


async def test_a_binary_graph_of_tensors_names_both_classes_too(tmp_path: Path):
    models = await to_thread(imported, tmp_path, "binary", preprocess="none")
    async with serving(models) as server:
        both = await infer(server, PIXELS[:2], classes=9)
        best = await infer(server, PIXELS[:2], classes=1)
        found = await server.stub.GetModel(pb.GetModelRequest(name="m"))

    right = await to_thread(run, models, PIXELS[:2])
    assert (both.shape, best.shape) == ((2, 2), (2, 1))
    for row, (p,) in zip(both, right, strict=True):
        assert sorted(row) == sorted([f"{1 - p:.6f}:0:no", f"{p:.6f}:1:yes"])
    assert found.scores == pb.INDEPENDENT


@pytest.mark.parametrize(
    ("name", "said", "kind"),
    [
        ("sigmoid", "", pb.INDEPENDENT),
        ("before the sigmoid", "", pb.INDEPENDENT_LOGITS),
        ("before the sigmoid", "logits", pb.LOGITS),
        ("binary", "", pb.INDEPENDENT),
    ],
)
async def test_a_model_says_the_kind_of_its_scores(tmp_path: Path, name: str, said: str, kind: int):
    more = {"output_kind": said} if said else {}
    models = await to_thread(lambda: imported(tmp_path, name, **more))
    async with serving(models) as server:
        (found,) = (await server.stub.ListModels(pb.ListModelsRequest())).models
        async with AsyncClient(server.address) as client:
            info = await client.model("m")

    assert found.scores == kind
    assert info.scores == ScoreKind(pb.ScoreKind.Name(kind))


@pytest.mark.parametrize("least", [float("nan"), -0.001, 1.001, float("inf")])
async def test_a_threshold_that_is_no_probability_is_named(models: Path, least: float):
    image = raw(np.zeros((4, 4, 3), np.uint8))
    async with serving(models) as server:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.classify(image, min_probability=least)
        stream = server.stub.ClassifyStream()
        request = pb.ClassifyRequest(images=[image], min_probability=least)
        await stream.write(pb.ClassifyStreamRequest(id="7", request=request))
        answer = await stream.read()
        stream.cancel()

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "min_probability: expected 0 to 1, got" in refused.value.details()
    assert (answer.id, answer.error.code) == ("7", 3)
    assert "min_probability: expected 0 to 1" in answer.error.message


async def test_clients_cope_with_an_image_that_shows_nothing(tmp_path: Path):
    models = await to_thread(imported, tmp_path, "sigmoid")
    images = [file(image) for image in PIXELS[:3]]
    async with serving(models) as server, AsyncClient(server.address) as client:
        one = await client.classify(images[0], min_probability=1)
        several = await client.classify([*images, b"no image"], min_probability=1.0)
        streamed = {
            number: result
            async for number, result in client.classify_stream(enumerate(images), min_probability=0.999999)
        }
        every = await client.classify(images[0], min_probability=0, top_k=5)

    assert len(every.predictions) == 5
    for result in (one, *several[:3]):
        assert (result.error, result.predictions, result.model) == (None, (), "m")
        with pytest.raises(LookupError, match="no class reached min_probability"):
            _ = result.top
    assert several[3].error is not None
    assert all(result.error is None for result in streamed.values())
    assert len(streamed) == 3
