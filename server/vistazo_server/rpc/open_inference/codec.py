"""Protobuf ⇄ plain values for ModelInfer: every check of a request, and nothing else.

A request is checked before it is decoded: names, datatypes, shapes and numbers of elements cost next to
nothing, while the elements of a large one cost seconds, and it may be refused for load in between.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vistazo_proto import open_inference_pb2 as pb
from vistazo_server.engine.tensors import BYTES, Signature, TensorSpec, describe, quoted
from vistazo_server.errors import InvalidRequestError
from vistazo_server.inference.predictor import COPY_SECONDS, ModelInputs, NamedTensor, OutputChoice, Undecoded
from vistazo_server.inference.raw_tensors import encode_raw
from vistazo_server.inference.side_thread import Steps
from vistazo_server.rpc.open_inference.contents import STRING_SECONDS, Contents, check_contents, decode_inputs
from vistazo_server.rpc.wire import field_head

_InputTensor = pb.ModelInferRequest.InferInputTensor

_MOST_NAMES_SHOWN: Final = 10

_FINAL_RESPONSE_ASKED: Final = "triton_enable_empty_final_response"
_FINAL_RESPONSE: Final = "triton_final_response"


@dataclass(slots=True)  # not frozen: one is made for each request, and a frozen one takes three times as long
class InferCommand:
    """A ModelInferRequest in plain values."""

    inputs: ModelInputs | Undecoded
    outputs: Sequence[OutputChoice]
    timeout: float | None
    """Seconds that the request gives itself; None: no more than its call has."""


def decode_infer_request(
    request: pb.ModelInferRequest, signature: Signature, *, takes_images: bool, max_samples: int
) -> InferCommand:
    """Return what `request` asks of a model with this signature; what takes time is left to be decoded.

    `takes_images`: the model's one input may be BYTES, each element an encoded image. Raises
    InvalidRequestError, which names the field, what was expected and what came.
    """
    timeout = _decode_parameters(request.parameters)
    tensors = _named_inputs(request, signature)
    outputs = _decode_outputs(request, signature)
    as_images = takes_images and tensors[0][1].datatype == BYTES
    counts = [
        _elements(tensor, signature, spec, as_images=as_images)
        for spec, (_, tensor) in zip(signature.inputs, tensors, strict=True)
    ]
    samples = _samples(tensors, signature, max_samples=max_samples)
    raw = _raw_contents(request)
    contents = [
        check_contents(tensor, raw[at] if raw else None, count)
        for count, (at, tensor) in zip(counts, tensors, strict=True)
    ]
    arrays = [one for one in contents if isinstance(one, np.ndarray)]
    if len(arrays) == len(contents):
        return InferCommand(ModelInputs(arrays, ()), outputs, timeout)
    seconds = sum(one.seconds for one in contents if isinstance(one, Contents))
    decode = functools.partial(decode_inputs, contents, as_images=as_images)
    return InferCommand(Undecoded(samples, seconds, decode), outputs, timeout)


def encode_seconds(tensors: Sequence[NamedTensor]) -> float:
    """Return how long it is predicted to take to serialise an answer."""
    return sum(
        tensor.array.size * STRING_SECONDS if tensor.datatype == BYTES else tensor.array.nbytes * COPY_SECONDS
        for tensor in tensors
    )


def encode_infer_response(
    request: pb.ModelInferRequest,
    *,
    model: str,
    version: str,
    tensors: Sequence[NamedTensor],
    in_stream: bool = False,
) -> Steps[bytes]:
    """Return the answer to `request`, serialised, all its tensors raw, as steps.

    It is a ModelInferResponse; `in_stream`, a ModelStreamInferResponse around it, which is marked as the last
    one where the request asks for that.
    """
    response = pb.ModelInferResponse(
        model_name=model,
        model_version=version,
        id=request.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape
            )
            for tensor in tensors
        ],
    )
    asked = request.parameters.get(_FINAL_RESPONSE_ASKED) if in_stream else None
    if asked is not None and asked.bool_param:
        response.parameters[_FINAL_RESPONSE].bool_param = True
    # The tensors are put behind it as they are: protobuf would copy each of them twice more, and keep the
    # interpreter's lock for 60 ms with 38 MB.
    parts: list[bytes | memoryview] = [response.SerializeToString()]
    size = len(parts[0])
    for tensor in tensors:
        raw = yield from encode_raw(tensor.array)
        head = field_head(pb.ModelInferResponse, "raw_output_contents", raw.nbytes)
        parts += (head, raw)
        size += len(head) + raw.nbytes
    if in_stream:
        parts.insert(0, field_head(pb.ModelStreamInferResponse, "infer_response", size))
    return b"".join(parts)


def _decode_parameters(parameters: Mapping[str, pb.InferParameter]) -> float | None:
    """Return the timeout in seconds. Parameters that nobody here knows are the caller's own business."""
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if name in parameters and _value(parameters[name]):
            raise InvalidRequestError(
                f"parameters[{name}]: expected none, models here keep no state between requests"
            )
    if "timeout" not in parameters:
        return None
    microseconds = _whole_number(parameters["timeout"], "parameters[timeout]", "microseconds", least=0)
    # 0 is Triton's way to say none.
    return microseconds / 1e6 if microseconds else None


def _value(parameter: pb.InferParameter) -> Any:  # noqa: ANN401  one of five types
    choice = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, choice) if choice else None


def _whole_number(parameter: pb.InferParameter, where: str, what: str, *, least: int) -> int:
    value = _value(parameter)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        shown = quoted(value) if isinstance(value, str) else value
        raise InvalidRequestError(f"{where}: expected a whole number of {what} from {least} up, got {shown}")
    return value


def _named_inputs(
    request: pb.ModelInferRequest, signature: Signature
) -> list[tuple[int, pb.ModelInferRequest.InferInputTensor]]:
    """Return the request's input for each of the model's, and its place in the request."""
    given: dict[str, tuple[int, _InputTensor]] = {}
    names = [spec.name for spec in signature.inputs]
    for at, tensor in enumerate(request.inputs):
        if tensor.name not in names:
            raise InvalidRequestError(
                f"inputs: {quoted(tensor.name)} is not an input of the model; it has {_listed(names)}"
            )
        if tensor.name in given:
            raise InvalidRequestError(f"inputs: {quoted(tensor.name)} is given twice")
        if "shared_memory_region" in tensor.parameters:
            raise InvalidRequestError(
                f"input {quoted(tensor.name)}: expected its data in the request, got a shared memory region, "
                "which is not supported"
            )
        given[tensor.name] = (at, tensor)
    missing = [name for name in names if name not in given]
    if missing:
        raise InvalidRequestError(f"inputs: expected {_listed(names)}, {_listed(missing)} is missing")
    return [given[name] for name in names]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(quoted(name) for name in names[:_MOST_NAMES_SHOWN])
    return f"{shown} and {len(names) - _MOST_NAMES_SHOWN} more" if len(names) > _MOST_NAMES_SHOWN else shown


def _decode_outputs(request: pb.ModelInferRequest, signature: Signature) -> list[OutputChoice]:
    names = [spec.name for spec in signature.outputs]
    if not request.outputs:
        return [OutputChoice(index) for index in range(len(names))]
    choices: dict[str, OutputChoice] = {}
    for output in request.outputs:
        if output.name not in names:
            raise InvalidRequestError(
                f"outputs: {quoted(output.name)} is not an output of the model; it has {_listed(names)}"
            )
        if output.name in choices:
            raise InvalidRequestError(f"outputs: {quoted(output.name)} is requested twice")
        where = f"output {quoted(output.name)}"
        if "shared_memory_region" in output.parameters:
            raise InvalidRequestError(f"{where}: shared memory is not supported")
        index = names.index(output.name)
        classes = 0
        if "classification" in output.parameters:
            classes = _whole_number(
                output.parameters["classification"], f"{where}: classification", "classes", least=1
            )
            if signature.outputs[index].datatype == BYTES:
                raise InvalidRequestError(f"{where}: classification needs numbers, its datatype is BYTES")
        choices[output.name] = OutputChoice(index, classes)
    return list(choices.values())


def _elements(tensor: _InputTensor, signature: Signature, spec: TensorSpec, *, as_images: bool) -> int:
    """Return the number of elements, once datatype and shape are those of the model's input."""
    where = f"input {quoted(tensor.name)}"
    # A stranger may send a shape of a million dimensions.
    shape = tuple(tensor.shape) if len(tensor.shape) <= len(spec.dims) + 2 else None
    if as_images:
        if shape is None or len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or shape[0] < 0:
            raise InvalidRequestError(
                f"{where}: expected shape [-1] or [-1, 1] of encoded images, got {describe(tensor.shape)}"
            )
        return shape[0]
    if tensor.datatype != spec.datatype:
        raise InvalidRequestError(
            f"{where}: expected datatype {spec.datatype}, got {quoted(tensor.datatype)}"
        )
    sample = None if shape is None else shape[1:] if signature.is_batched else shape
    if shape is None or sample is None or not spec.fits(sample) or (signature.is_batched and not shape):
        sizes = ", with sizes from 1 up" if sample is not None and min(sample, default=1) < 1 else ""
        raise InvalidRequestError(
            f"{where}: expected shape {describe(signature.shape(spec))}{sizes}, got {describe(tensor.shape)}"
        )
    return math.prod(shape)


def _samples(tensors: Sequence[tuple[int, _InputTensor]], signature: Signature, *, max_samples: int) -> int:
    """Return how many samples the request has; all its inputs must agree."""
    if not signature.is_batched:
        return 1
    samples: int = tensors[0][1].shape[0]
    for _, tensor in tensors:
        where = f"input {quoted(tensor.name)}"
        if not 1 <= tensor.shape[0] <= max_samples:
            raise InvalidRequestError(
                f"{where}: expected a batch of 1 to {max_samples}, got {tensor.shape[0]}"
            )
        if tensor.shape[0] != samples:
            raise InvalidRequestError(
                f"{where}: expected a batch of {samples}, as {quoted(tensors[0][1].name)} has, "
                f"got {tensor.shape[0]}"
            )
    return samples


def _raw_contents(request: pb.ModelInferRequest) -> Sequence[bytes]:
    """Return the raw contents, one for each input of the request; none when the inputs are typed."""
    raw = request.raw_input_contents
    if not raw:
        return ()
    if len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"raw_input_contents: expected {len(request.inputs)}, one for each input, got {len(raw)}"
        )
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidRequestError(
                f"input {quoted(tensor.name)}: expected no contents, since raw_input_contents has the data"
            )
    return raw
