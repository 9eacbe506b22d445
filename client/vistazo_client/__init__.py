"""Vistazo's Python client: image classification over gRPC.

    from vistazo_client import Client

    with Client("127.0.0.1:8001") as client:
        result = client.classify("cat.jpg", model="resnet18", top_k=3)
    for prediction in result.predictions:
        print(f"{prediction.probability:6.1%}  {prediction.label}")

`AsyncClient` is the same for asyncio. `Client` says what an image may be, how addresses, retries, TLS and
tokens are given; `vistazo_client.errors` draws the tree of exceptions. The names
here are the public API, and nothing else is.
"""

from importlib.metadata import version as _version

from vistazo_client._images import ImageInput
from vistazo_client.aio import AsyncClient
from vistazo_client.client import Client
from vistazo_client.credentials import TLS
from vistazo_client.errors import (
    EXCEPTION_FOR,
    AuthenticationError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    LocalPreprocessingWarning,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RequestCancelledError,
    ServerError,
    TLSError,
    UnavailableError,
    UnsupportedError,
    VistazoError,
)
from vistazo_client.results import (
    BatchLatency,
    Classification,
    ModelInfo,
    ModelState,
    Prediction,
    ScoreKind,
    Timing,
)

__version__ = _version("vistazo")

__all__ = [
    "EXCEPTION_FOR",
    "TLS",
    "AsyncClient",
    "AuthenticationError",
    "BatchLatency",
    "Classification",
    "Client",
    "DeadlineExceededError",
    "ImageInput",
    "InvalidImageError",
    "InvalidRequestError",
    "LocalPreprocessingWarning",
    "ModelInfo",
    "ModelNotFoundError",
    "ModelState",
    "OverloadedError",
    "PermissionDeniedError",
    "Prediction",
    "RequestCancelledError",
    "ScoreKind",
    "ServerError",
    "TLSError",
    "Timing",
    "UnavailableError",
    "UnsupportedError",
    "VistazoError",
    "__version__",
]
