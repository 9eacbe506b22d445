"""Tensors: shapes that are none, that the graph cannot run; odd values, large samples, many samples."""

import functools
import itertools

import numpy as np

from strangers.field import LOAD, Field, attack
from strangers.good import SIDES, infer
from strangers.models import LEAST_SIDE, free_sample
from support.serving import raw
from support.tiny import plain
from vistazo_proto import open_inference_pb2 as pb

FAILED = frozenset({"INTERNAL", "INVALID_ARGUMENT", "OK"})
INVALID = frozenset({"INVALID_ARGUMENT"})
NOTHING = "Nothing: none of it can be run."


def shaped(*shape: int, data: bytes = b"", model: str = "free") -> pb.ModelInferRequest:
    """Return a request that says this shape, whatever its data is."""
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    request.raw_input_contents.append(data)
    return request


def in_turn(field: Field, requests, *, callers: int):
    """Return callers, each on a connection of its own, that send the requests in turn."""
    turns = itertools.cycle(requests)

    def caller():
        stub = field.open_inference()
        return lambda: field.infer(stub, next(turns))

    return [caller() for _ in range(callers)]


def occupying(field: Field):
    """Return a caller that keeps the engine busy, so that the others' requests wait and ride together."""
    stub = field.classification()
    return lambda: field.classify(stub, raw(plain(1, 2, 3)), model="slow")


@attack(beside="free", expected=INVALID | {"OK"}, entitled=NOTHING)
async def zero_sized_shapes(field: Field) -> None:
    """Samples without a single element, in the batches of the good caller's own."""
    shapes = [(1, 3, 0, 0), (1, 3, 0, 16), (1, 3, 16, 0), (2, 3, 0, 0), (0, 3, 16, 16), (0, 3, 0, 0)]
    callers = [*in_turn(field, [shaped(*shape) for shape in shapes], callers=4), occupying(field)]
    await field.begin()
    await field.crowd(callers)


@attack(beside="free", expected=INVALID, entitled=NOTHING)
async def overflowing_shapes(field: Field) -> None:
    """Shapes whose product is beyond 64 bits, or a multiple of 2⁶⁴, or negative."""
    most = 2**63 - 1
    shapes = [
        *((1, 3, most, most), (1, 3, 2**32, 2**32), (most, 3, 16, 16), (1, 3, most, 0)),
        *((1, 3, 0, most), (1, 3, -1, -1), (1, 3, -16, -16), (-1, 3, 16, 16), (2**62, 3, 4, 1)),
    ]
    full = free_sample((0, 0, 0), 16, 16).tobytes()
    requests = [shaped(*shape, data=data) for shape in shapes for data in (b"", full)]
    callers = in_turn(field, requests, callers=4)
    await field.begin()
    await field.crowd(callers)


@attack(beside="free", expected=FAILED, entitled="One run of each, failed.")
async def shapes_that_the_graph_cannot_run(field: Field) -> None:
    """Samples smaller than the model's convolutions, in the batches of the good caller's own."""
    sides = [(1, 1), (2, 2), (LEAST_SIDE - 1, 50), (50, LEAST_SIDE - 1), (1, 400)]
    requests = [
        infer(np.stack([free_sample((1, 1, 1), *side)] * count)) for side in sides for count in (1, 2)
    ]
    callers = in_turn(field, requests, callers=6)
    callers.append(occupying(field))
    await field.begin()
    await field.crowd(callers)


@attack(beside="free", expected=FAILED, entitled="One run of each.")
async def one_bad_sample_among_many_good(field: Field) -> None:
    """Bursts of good samples with one that cannot be run, so that it always finds batch-mates."""
    good = infer(free_sample((0.5, 0.5, 0.5), *SIDES[0])[None])
    bad = infer(np.stack([free_sample((1, 1, 1), 1, 1)] * 2))
    callers = [*in_turn(field, [good], callers=6), *in_turn(field, [bad], callers=1), occupying(field)]
    await field.begin()
    await field.crowd(callers)


@attack(beside="free", expected=LOAD, entitled="Its share of the batches that it rides in.")
async def extreme_values(field: Field) -> None:
    """Not-a-numbers, infinities, the largest and the smallest numbers, in the good caller's batches."""
    values = [np.nan, np.inf, -np.inf, np.finfo(np.float32).max, -3.4e38, 1e-45, -0.0]
    requests = [
        infer(np.full((count, 3, *side), value, np.float32))
        for value, side, count in itertools.product(values, SIDES, (1, 3))
    ]
    callers = in_turn(field, requests, callers=4)
    await field.begin()
    await field.crowd(callers)


LARGE_SIDE = 600
"""Some 100 ms of two cores."""


@attack(beside="pixels", expected=LOAD, entitled="One run at a time in turn with the others'.")
async def huge_samples(field: Field) -> None:
    """Samples of 4 MB for the model of free sizes, beside a small model."""
    request = infer(free_sample((0.1, 0.2, 0.3), LARGE_SIDE, LARGE_SIDE)[None])
    callers = in_turn(field, [request], callers=2)
    await field.begin()
    await field.crowd(callers)


@attack(beside="free", expected=LOAD, entitled="One run at a time in turn with the others'.")
async def huge_samples_of_the_same_model(field: Field) -> None:
    """Samples of 4 MB for the model that the good caller asks with small ones."""
    await huge_samples(field)


@attack(beside="free", expected=LOAD, entitled="One batch in turn with the others'.")
async def samples_of_ever_new_sizes(field: Field) -> None:
    """Each request of another height and width: no batch, no warm-up and no plan of memory fits the next."""
    sides = itertools.product(range(LEAST_SIDE, 300, 7), range(LEAST_SIDE, 300, 11))
    requests = [infer(free_sample((0.5, 0.1, 0.9), *side)[None]) for side in sides]
    field.chance.shuffle(requests)
    callers = in_turn(field, requests, callers=4)
    await field.begin()
    await field.crowd(callers)


MOST_SAMPLES = 256
"""The server's own limit of one request."""


@attack(beside="free", expected=LOAD, entitled="One batch at a time, in turn with the others'.")
async def requests_of_the_most_samples(field: Field) -> None:
    """As many samples as a request may have, without a deadline."""
    sample = free_sample((0.5, 0.1, 0.9), 32, 32)
    request = infer(np.stack([sample] * MOST_SAMPLES))
    stubs = [field.open_inference() for _ in range(4)]
    callers = [functools.partial(field.infer, stub, request, deadline=None) for stub in stubs]
    await field.begin()
    await field.crowd(callers)


FP32_CONTENTS = bytes([6 << 3 | 2])
"""The tag of InferTensorContents.fp32_contents, packed: to append millions of numbers takes seconds."""


def typed(count: int, *shape: int) -> pb.ModelInferRequest:
    """Return a request to `means` with so many numbers as typed contents, each a number of protobuf's."""
    request = pb.ModelInferRequest(model_name="means")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=shape)
    data = np.full(count, 0.25, np.float32).tobytes()
    tensor.contents.MergeFromString(FP32_CONTENTS + varint(len(data)) + data)
    return request


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    low = bytes([number & 0x7F | (0x80 if number > 0x7F else 0)])
    return low + varint(number >> 7) if number > 0x7F else low


@attack(beside="pixels", expected=LOAD, entitled="Its decoding, off the event loop, and its run in turn.")
async def typed_contents_of_tens_of_megabytes(field: Field) -> None:
    """A sample of 38 MB as typed contents, for a model that makes short work of it."""
    side = 1780
    stub = field.open_inference()
    request = typed(3 * side * side, 1, 3, side, side)
    await field.begin()
    await field.crowd([functools.partial(field.infer, stub, request)])


@attack(beside="pixels", expected=INVALID, entitled=NOTHING)
async def typed_contents_that_are_too_many(field: Field) -> None:
    """38 MB of typed contents for a tensor of 3 kB."""
    stub = field.open_inference()
    request = typed(9_500_000, 1, 3, 16, 16)
    await field.begin()
    await field.crowd([functools.partial(field.infer, stub, request)])


@attack(beside="free", expected=INVALID, entitled=NOTHING)
async def thousands_of_tensors(field: Field) -> None:
    """Requests with ten thousand inputs, outputs and parameters that the model does not have."""
    request = shaped(1, 3, 16, 16, data=free_sample((0, 0, 0), 16, 16).tobytes())
    for number in range(10_000):
        request.inputs.add(name=f"input {number}", datatype="FP32", shape=[1] * 20)
        request.outputs.add(name=f"output {number}")
        request.parameters[f"parameter {number}"].string_param = "x"
    callers = in_turn(field, [request], callers=2)
    await field.begin()
    await field.crowd(callers)
