"""Every knob of the server, declared once: default, environment variable, flag, check and help."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of `vistazo serve`: a flag wins over its VISTAZO_* variable, that over the default."""

    model_config = SettingsConfigDict(
        env_prefix="VISTAZO_", use_attribute_docstrings=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    models: Path = Path("models")
    """Model repository to serve: <name>/<version>/model.onnx with its manifest.json, as export writes it."""

    listen: str = "127.0.0.1:8001"
    """Address of the gRPC server, HOST:PORT. Port 0 takes a free one and logs it. Use 0.0.0.0 or [::] to
    accept other machines."""

    metrics_listen: str = "127.0.0.1:8002"
    """Address of the Prometheus endpoint, HOST:PORT. Empty: none."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What runs the models. auto: CUDA where ONNX Runtime offers it, else the CPU."""

    allow_cpu_fallback: bool = False
    """With device cuda: serve on the CPU when CUDA does not start, instead of failing."""

    threads: NonNegativeInt = 0
    """Threads of one inference on the CPU. 0: as many as the affinity mask and the cgroup quota allow."""

    preprocess_threads: NonNegativeInt = 0
    """Threads that decode and resize images. 0: one for each CPU of the same budget."""

    max_batch_size: NonNegativeInt = 0
    """Most samples in one batch, never more than the manifest's maximum. 0: measured at warm-up, the smallest
    size that reaches 95 % of the best throughput."""

    queue_delay_ms: NonNegativeFloat = 0.0
    """Longest that an idle engine waits for a fuller batch. 0 is right for most: batches form by themselves
    while the engine is busy."""

    queue_limit: PositiveInt = 512
    """Most samples that may wait for one model; more are refused at once. Low: callers are refused early
    and can go elsewhere. High: bursts are absorbed, at the price of waiting."""

    default_deadline_ms: PositiveFloat = 30_000.0
    """Deadline of a request whose caller sent none."""

    max_message_mb: Annotated[int, Field(ge=1, le=2047)] = 64
    """Largest request or response, in MiB."""

    max_images_per_request: PositiveInt = 256
    """Most images in one request."""

    max_image_megapixels: PositiveFloat = 50.0
    """Largest image that is decoded, in millions of pixels, checked before any pixel is: a file of a few
    kilobytes can claim gigabytes."""

    drain_delay_seconds: NonNegativeFloat = 0.0
    """After SIGTERM: how long to go on serving while health says NOT_SERVING, so that load balancers
    notice."""

    grace_seconds: NonNegativeFloat = 30.0
    """After the drain delay: how long accepted requests may take to finish."""

    reflection: bool = True
    """Answer gRPC server reflection, so that tools such as grpcurl need no .proto file."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged. debug adds a line for each request."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """json: one object a line. console: for people. auto: console on a terminal, else json."""

    @field_validator("listen", "metrics_listen")
    @classmethod
    def _is_host_and_port(cls, address: str) -> str:
        host, colon, port = address.rpartition(":")
        if address and not (host and colon and port.isdecimal() and int(port) < 65536):
            raise ValueError(
                f"expected HOST:PORT with a port of 0 to 65535, such as 127.0.0.1:8001, got {address!r}"
            )
        return address

    @field_validator("listen")
    @classmethod
    def _is_given(cls, address: str) -> str:
        if not address:
            raise ValueError("expected HOST:PORT, got an empty address")
        return address
