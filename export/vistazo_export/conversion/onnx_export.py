"""From a torch module to model.onnx: uint8 images in, logits out, nothing outside the file."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import onnx
import torch
from torch import Tensor, nn

from vistazo_export.errors import GraphError
from vistazo_export.networks.zoo import LoadedNetwork
from vistazo_export.presets.preset import Preset
from vistazo_export.publishing.manifest import INPUT_TENSOR, OUTPUT_TENSOR
from vistazo_proto.manifest_pb2 import ModelManifest

OPSET = 20
"""Of the graph's default domain. ONNX Runtime 1.22, the oldest allowed to serve, reads up to 22."""

# With 1, some networks come out with the batch frozen: torch takes a dimension of 1 for a constant.
TRACED_BATCH = 2

# model.onnx is one protobuf message, which cannot be larger than 2 GiB.
MOST_PARAMETER_BYTES = 2_000_000_000

BATCH_DIMENSION = "batch"

# How torch writes the first lines of `ImageGraph.forward`.
NORMALISATION = ("Transpose", "Cast", "Div", "Sub", "Div")


class ImageGraph(nn.Module):
    """What becomes model.onnx: uint8 images N×H×W×C in, logits N×classes out."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preset: Preset) -> None:
        super().__init__()
        self.network = network
        # Of values in 0 to 1 in RGB, whatever the network's are, so that all graphs begin alike.
        order = slice(None, None, -1) if preset.bgr else slice(None)
        mean = [value / preset.value_range for value in preset.mean[order]]
        std = [value / preset.value_range for value in preset.std[order]]
        self.bgr = preset.bgr
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise the images, order their channels, and return the network's logits."""
        scaled = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        normalised = (scaled - self.mean) / self.std
        if self.bgr:
            normalised = normalised[:, [2, 1, 0]]
        return cast("Tensor", self.network(normalised))


def write_onnx(network: LoadedNetwork, path: Path) -> None:
    """Write `network` with its normalisation as an ONNX graph to `path`, weights inside.

    Raises GraphError where torch cannot export it or it is too large for one file.
    """
    recipe = network.recipe
    weighs = sum(p.numel() * p.element_size() for p in network.module.parameters())
    if weighs > MOST_PARAMETER_BYTES:
        raise GraphError(
            f"{recipe.architecture} weighs {weighs / 1e9:.1f} GB; a single ONNX file holds at most 2 GB"
        )
    preset = recipe.preset
    example = torch.zeros(TRACED_BATCH, preset.height, preset.width, preset.channels, dtype=torch.uint8)
    graph = ImageGraph(network.module, preset).eval()
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_TENSOR],
                output_names=[OUTPUT_TENSOR],
                dynamic_shapes={"images": {0: torch.export.Dim(BATCH_DIMENSION)}},
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
            raise GraphError(f"torch cannot export {recipe.architecture}: {reason[:200]}") from error
        if program is None:
            raise GraphError(f"torch exported nothing for {recipe.architecture}")
        _forget_origin(program)
        program.save(path, external_data=False)


def normalisation_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph by `write_onnx` between the uint8 images and the network, in order."""
    nodes: list[onnx.NodeProto] = []
    tensor = INPUT_TENSOR
    for operator in NORMALISATION:
        node = next((n for n in graph.node if n.op_type == operator and n.input[0] == tensor), None)
        if node is None:
            raise GraphError(f"the graph does not begin with the normalisation: no {operator} of {tensor}")
        nodes.append(node)
        tensor = node.output[0]
    return nodes


def check_onnx(path: Path, manifest: ModelManifest) -> int:
    """Check the graph at `path` against `manifest` and return its opset.

    Raises GraphError where the ONNX checker refuses it, where input or output differ in name, type or
    shape, or where it still holds what belongs to training.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path)
    # google.protobuf's DecodeError, the checker's and shape inference's errors: all plain Exceptions.
    except Exception as error:
        raise GraphError(f"{path.name} is not valid ONNX: {' '.join(str(error).split())[:200]}") from error

    size, pixels = manifest.input, onnx.TensorProto.UINT8
    _check_tensor("input", model.graph.input, size.tensor, pixels, [size.height, size.width, size.channels])
    output = manifest.output
    _check_tensor("output", model.graph.output, output.tensor, onnx.TensorProto.FLOAT, [output.classes])
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in nodes:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type == "Dropout" or training:
            raise GraphError(f"{path.name} was exported in training mode: it holds {node.op_type}")
    return next(opset.version for opset in model.opset_import if opset.domain in {"", "ai.onnx"})


def _check_tensor(
    role: str, tensors: Sequence[onnx.ValueInfoProto], name: str, dtype: int, sizes: list[int]
) -> None:
    """Check that `tensors` is the one tensor that the manifest promises, its batch dynamic."""
    if [tensor.name for tensor in tensors] != [name]:
        found = ", ".join(tensor.name for tensor in tensors)
        raise GraphError(f"the graph's {role} is {found}, the manifest says {name}")
    kind = tensors[0].type.tensor_type
    if kind.elem_type != dtype:
        names = {number: name for name, number in onnx.TensorProto.DataType.items()}
        found, wanted = (names.get(number, f"type {number}") for number in (kind.elem_type, dtype))
        raise GraphError(f"the graph's {role} {name} is {found}, the manifest says {wanted}")
    batch, *rest = kind.shape.dim
    if not batch.dim_param:
        raise GraphError(f"the graph's {role} {name} has a fixed batch of {batch.dim_value}")
    if [dim.dim_value for dim in rest] != sizes:
        found = "×".join(str(dim.dim_value or dim.dim_param) for dim in rest)
        raise GraphError(
            f"the graph's {role} {name} is N×{found}, the manifest says N×{'×'.join(map(str, sizes))}"
        )


def _forget_origin(program: torch.onnx.ONNXProgram) -> None:
    """Drop the exporter's notes: stack traces with this machine's paths, different on each machine."""
    model = program.model
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's own deprecations and chatter from the user, who can do nothing about them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
