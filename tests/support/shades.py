"""Images of one shade, and a model that stretches them: its bytes tell which image something was made of."""

import grpc
import numpy as np

from support.images import file
from vistazo_proto import classification_pb2 as pb

SIDE = 8
"""Of the input of the model, in pixels."""


def model(*, preprocessing_id="first", side=SIDE, version="1", **told):
    """Return what a server says of a model whose images are stretched."""
    fields = {
        "resize_mode": pb.Preprocessing.STRETCH,
        "resize_height": side,
        "resize_width": side,
        "interpolation": "bilinear",
        "jpeg_decoding": pb.Preprocessing.EXACT,
        "id": preprocessing_id,
    }
    return pb.Model(
        name="resnet18",
        version=version,
        state=pb.READY,
        input_height=side,
        input_width=side,
        input_channels=3,
        preprocessing=pb.Preprocessing(**(fields | told)),
    )


def shade(value):
    """Return a PNG of one shade: what is made of it, of whatever size, has its value in every byte."""
    return file(np.full((20, 30, 3), value, np.uint8))


def pixels(value, side=SIDE):
    return bytes([value]) * (side * side * 3)


def label(value):
    """Return what the fake server answers to the pixels of a shade."""
    return (bytes([value]) * 64).decode("latin-1")


def sent(server):
    """Return the images of all requests, as what was sent and for what it was prepared."""
    return [
        (image.raw.data or image.encoded, request.prepared_as)
        for request in server.service.requests
        for image in request.images
    ]


def refuse(server, *, unless):
    """Let the server refuse what was prepared for anything else, as one that swapped models does."""

    def script(request, context):
        if request.prepared_as not in unless:
            context.set_trailing_metadata((("vistazo-error-reason", "prepared-otherwise"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "prepared in another way")

    def stream_script(request, context):
        if request.request.prepared_as not in unless:
            error = pb.ImageError(code=9, message="prepared in another way", reason="prepared-otherwise")
            return pb.ClassifyStreamResponse(id=request.id, error=error)
        return None

    server.service.script, server.service.stream_script = script, stream_script
