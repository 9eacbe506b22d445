"""Protobuf ⇄ plain values for ModelInfer: every check of a request, and nothing else."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vistazo_proto import open_inference_pb2 as pb
from vistazo_server.errors import InvalidRequestError
from vistazo_server.predictor import NamedTensor, OutputChoice
from vistazo_server.tensors import (
    BYTES,
    DTYPES,
    Array,
    Signature,
    TensorSpec,
    as_text,
    decode_raw,
    decode_raw_bytes,
    describe,
    encode_raw,
)

_InputTensor = pb.ModelInferRequest.InferInputTensor

# The one field of InferTensorContents that holds each datatype; FP16 has none.
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_WIDE: Final = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}
"""What the fields hold that carry datatypes narrower than their own."""

_MOST_NAMES_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class InferCommand:
    """A ModelInferRequest in plain values."""

    inputs: Sequence[Array]
    """One for each of the model's inputs, in its order, with the batch dimension; empty with `images`."""
    images: Sequence[bytes]
    """Encoded files, given as BYTES instead of the tensor of an image model."""
    samples: int
    outputs: Sequence[OutputChoice]
    timeout: float | None
    """Seconds that the request gives itself; None: no more than its call has."""


def decode_infer_request(
    request: pb.ModelInferRequest, signature: Signature, *, takes_images: bool, max_samples: int
) -> InferCommand:
    """Return what `request` asks of a model with this signature.

    `takes_images`: the model's one input may be BYTES, each element an encoded image. Raises
    InvalidRequestError, which names the field, what was expected and what came.
    """
    timeout = _decode_parameters(request.parameters)
    tensors = _named_inputs(request, signature)
    outputs = _decode_outputs(request, signature)
    as_images = takes_images and tensors[0][1].datatype == BYTES
    checked = [
        (_with_shape(tensor, signature, spec, as_images=as_images), at, tensor)
        for spec, (at, tensor) in zip(signature.inputs, tensors, strict=True)
    ]
    samples = _samples(tensors, signature, max_samples=max_samples)
    raw = _raw_contents(request)
    if as_images:
        _, at, tensor = checked[0]
        images = _byte_elements(tensor, raw[at] if raw else None, count=samples)
        return InferCommand((), images, samples, outputs, timeout)
    arrays = [_array(tensor, raw[at] if raw else None, count=count) for count, at, tensor in checked]
    return InferCommand(arrays, (), samples, outputs, timeout)


def encode_infer_response(
    request: pb.ModelInferRequest, *, model: str, version: str, tensors: Sequence[NamedTensor]
) -> pb.ModelInferResponse:
    """Return the answer to `request`, all its tensors raw."""
    return pb.ModelInferResponse(
        model_name=model,
        model_version=version,
        id=request.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape
            )
            for tensor in tensors
        ],
        raw_output_contents=[encode_raw(tensor.array) for tensor in tensors],
    )


def quoted(name: str) -> str:
    """Return a caller's string fit for a one-line message."""
    return repr(name[:100])


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


def _with_shape(tensor: _InputTensor, signature: Signature, spec: TensorSpec, *, as_images: bool) -> int:
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
    if (
        shape is None
        or sample is None
        or min(shape, default=0) < 0
        or not spec.fits(sample)
        or (signature.is_batched and not shape)
    ):
        raise InvalidRequestError(
            f"{where}: expected shape {describe(signature.shape(spec))}, got {describe(tensor.shape)}"
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


def _array(tensor: _InputTensor, raw: bytes | None, *, count: int) -> Array:
    """Return an input's `count` elements in its shape."""
    if tensor.datatype == BYTES:
        elements = _byte_elements(tensor, raw, count=count)
        with _naming(tensor):
            flat = as_text(elements)
    elif raw is None:
        flat = _typed_numbers(tensor, count=count)
    else:
        with _naming(tensor):
            flat = decode_raw(raw, tensor.datatype, count)
    return flat.reshape(tuple(tensor.shape))


def _byte_elements(tensor: _InputTensor, raw: bytes | None, *, count: int) -> list[bytes]:
    if raw is None:
        return list(_typed(tensor, count=count))
    with _naming(tensor):
        return decode_raw_bytes(raw, count)


@contextmanager
def _naming(tensor: _InputTensor) -> Iterator[None]:
    """Let what is wrong with a tensor's data name the tensor."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequestError(
            f"input {quoted(tensor.name)} of shape {describe(tensor.shape)}: {error}"
        ) from None


def _typed(tensor: _InputTensor, *, count: int) -> Any:  # noqa: ANN401  protobuf's repeated fields
    """Return the one field of an input's contents that fits its datatype, once it has `count` elements."""
    where = f"input {quoted(tensor.name)}"
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequestError(
            f"{where}: {tensor.datatype} has no typed contents, send it in raw_input_contents"
        )
    for other, _ in tensor.contents.ListFields():
        if other.name != field:
            raise InvalidRequestError(f"{where}: expected {field} for {tensor.datatype}, got {other.name}")
    contents = getattr(tensor.contents, field)
    if len(contents) != count:
        raise InvalidRequestError(
            f"{where} of shape {describe(tensor.shape)}: expected {count} elements in {field}, "
            f"got {len(contents)}"
        )
    return contents


def _typed_numbers(tensor: _InputTensor, *, count: int) -> Array:
    contents = _typed(tensor, count=count)
    dtype = DTYPES[tensor.datatype]
    wide = np.fromiter(contents, dtype=_WIDE.get(_CONTENTS[tensor.datatype], dtype), count=count)
    if wide.dtype == dtype:
        return wide
    bounds = np.iinfo(dtype)
    for value in (wide.min(initial=0), wide.max(initial=0)):
        if not bounds.min <= value <= bounds.max:
            raise InvalidRequestError(
                f"input {quoted(tensor.name)}: expected {tensor.datatype} values of {bounds.min} to "
                f"{bounds.max}, got {value}"
            )
    return wide.astype(dtype)
