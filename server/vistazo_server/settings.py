"""Every knob of the server, declared once: default, environment variable, flag, check and help."""

import ipaddress
import tomllib
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from vistazo_preprocessing.effort import MAX_PIXELS
from vistazo_server.errors import StartupError
from vistazo_server.repository.versions import VersionPolicy

PER_MODEL: Final = frozenset(
    {
        "max_batch_size",
        "slo_ms",
        "queue_delay_ms",
        "queue_limit",
        "default_deadline_ms",
        "version_policy",
        "jpeg_decoding",
    }
)
"""Settings that a model may have of its own."""


class Settings(BaseSettings):
    """Settings of `vistazo serve`: a flag wins over its VISTAZO_* variable, that over the default."""

    model_config = SettingsConfigDict(
        env_prefix="VISTAZO_", use_attribute_docstrings=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    models: Path = Path("models")
    """Model repository to serve: <name>/<version>/model.onnx with its manifest.json, as export writes it."""

    model_control: Literal["none", "poll", "explicit"] = "none"
    """When models are loaded and unloaded. none: at the start. poll: also when the repository changes.
    explicit: when a caller says so, over the Open Inference Protocol's RepositoryModelLoad and Unload."""

    poll_seconds: PositiveFloat = 15.0
    """With model control poll: time between two looks at the repository. A change counts when two looks in a
    row see the same."""

    load: str = ""
    """With model control explicit: models to load at the start, separated by commas. *: all."""

    version_policy: str = "latest:1"
    """Which versions of a model to serve. latest:N: the N highest. all. 1,3: those."""

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

    instances: Annotated[int, Field(ge=1, le=16)] = 1
    """Batches that run at once on the device, each on a session with weights of its own. More than 1 may pay
    on a large GPU that one batch does not fill; on the CPU the instances share the threads."""

    gpu_memory_mb: NonNegativeInt = 0
    """Most memory of each session's arena on the GPU, in MiB. 0: no limit."""

    preprocess_threads: NonNegativeInt = 0
    """Threads that decode and resize images of one kind, small or large (over 1 megapixel); one more is there
    for the other kind. 0: one for each CPU of the same budget."""

    jpeg_decoding: Literal["exact", "reduced"] = "exact"
    """How JPEGs are decoded. exact: all their pixels, as torchvision, timm and transformers do. reduced: one
    much larger than the network needs at 1/2, 1/4 or 1/8 of its size, as long as that is at least twice the
    size that it is resized to. Saves most of a photograph's time and memory; answers may differ a little."""

    max_batch_size: NonNegativeInt = 0
    """Most samples in one batch, never more than the manifest's maximum. 0: measured at warm-up, the smallest
    size that reaches 98 % of the best throughput."""

    slo_ms: NonNegativeFloat = 0.0
    """With max batch size 0: time in which requests should be answered. The largest batch then is the largest
    that takes half of it, instead of the one with nearly the best throughput. 0: none."""

    queue_delay_ms: NonNegativeFloat = 0.0
    """Longest that an idle engine waits for a fuller batch. 0 is right for most: batches form by themselves
    while the engine is busy."""

    queue_limit: PositiveInt = 512
    """Most samples that may wait for one model; more are refused at once. Low: callers are refused early
    and can go elsewhere. High: bursts are absorbed, at the price of waiting."""

    default_deadline_ms: PositiveFloat = 30_000.0
    """Deadline of a request whose caller sent none."""

    model_settings: Path | None = None
    """TOML file with settings for single models: a table for each, such as [vgg16], with any of
    max_batch_size, slo_ms, queue_delay_ms, queue_limit, default_deadline_ms, version_policy and
    jpeg_decoding."""

    max_message_mb: Annotated[int, Field(ge=1, le=2047)] = 64
    """Largest request or response, in MiB."""

    max_images_per_request: PositiveInt = 256
    """Most images, or samples of tensors, in one request."""

    max_image_megapixels: PositiveFloat = MAX_PIXELS / 1e6
    """Largest image that is decoded, in millions of pixels, checked before any pixel is: a file of a few
    kilobytes can claim gigabytes. The default lets pass what phones of up to 64 megapixels take; those of 108
    and 200 need 110 and 200 here."""

    decode_memory_mb: NonNegativeInt = 0
    """Most memory that large images (over 1 megapixel) may take while they are decoded, all together, in MiB:
    how many are decoded at once follows from it, and one that needs more is refused. A photograph of 50
    megapixels takes 200 to 500. 0: 42 % of the memory that the cgroup, the machine or ulimit allows."""

    max_connections: NonNegativeInt = 1000
    """Most connections at a time; more are closed as they come. 0: no limit but the process's of open files
    (ulimit -Hn)."""

    max_streams_per_connection: PositiveInt = 1024
    """Most RPCs at a time on one connection; a client that wants more waits."""

    max_connection_age_seconds: NonNegativeFloat = 1800.0
    """After about this long (±10 %) a connection is drained and its client connects anew, so that replicas
    that came later get their share. 0: never."""

    max_connection_age_grace_seconds: PositiveFloat = 300.0
    """How long RPCs on such a connection may take to end, before it is cut. The longest that a stream, or a
    caller that sends a byte now and then, can last."""

    tls_certificate: Path | None = None
    """PEM file with the server's certificate and those that lead to its authority. With it the port speaks
    TLS only. Read again when it changes. None: plaintext."""

    tls_key: Path | None = None
    """PEM file with the private key of the TLS certificate, without a password."""

    tls_client_ca: Path | None = None
    """PEM file with the authorities whose clients may connect (mTLS). None: any client may."""

    tokens: Path | None = None
    """File of bearer tokens, a line NAME SCOPES TOKEN for each; SCOPES is inference, model-control, or both
    with a comma. Read again when it changes. None: no RPC asks for a token."""

    drain_delay_seconds: NonNegativeFloat = 0.2
    """After SIGTERM: how long to go on serving while health says NOT_SERVING, so that load balancers
    notice. Then what comes is answered with UNAVAILABLE. 0: the port closes at once."""

    grace_seconds: NonNegativeFloat = 30.0
    """After the drain delay: how long accepted requests may take to finish."""

    reflection: bool | None = None
    """Answer gRPC server reflection, so that tools such as grpcurl need no .proto file. None: yes with TLS or
    on a loopback address, else no."""

    otlp_endpoint: str = ""
    """Where spans are sent by OTLP over gRPC, such as http://collector:4317; needs the extra `tracing`.
    OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER count. Empty: no tracing."""

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

    @field_validator("tls_certificate", "tls_key", "tls_client_ca", "tokens", mode="before")
    @classmethod
    def _empty_is_none(cls, path: object) -> object:
        # A variable that a compose file passes on is there, and empty, when its user did not set it.
        return None if path == "" else path

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("certificate", "key") if self.tls_key is None else ("key", "certificate")
            raise ValueError(f"expected --tls-{missing} beside --tls-{given}, got only the {given}")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("expected --tls-certificate and --tls-key beside --tls-client-ca, got neither")
        return self

    @property
    def is_reachable(self) -> bool:
        """Whether other machines can reach the gRPC port."""
        return not _is_loopback(self.listen)

    @property
    def is_exposed(self) -> bool:
        """Whether they can in plaintext."""
        return self.tls_certificate is None and self.is_reachable

    @property
    def tls_mode(self) -> Literal["off", "tls", "mtls"]:
        """What the gRPC port speaks."""
        if self.tls_certificate is None:
            return "off"
        return "tls" if self.tls_client_ca is None else "mtls"

    @property
    def answers_reflection(self) -> bool:
        """Whether reflection is on, by choice or by default."""
        return not self.is_exposed if self.reflection is None else self.reflection

    @field_validator("load")
    @classmethod
    def _is_for_explicit_control(cls, names: str, info: ValidationInfo) -> str:
        if names and info.data.get("model_control") != "explicit":
            raise ValueError("expected --model-control explicit beside --load")
        if "*" in names and names != "*":
            raise ValueError("expected * alone, or names")
        return names

    @field_validator("version_policy")
    @classmethod
    def _is_a_version_policy(cls, policy: str) -> str:
        VersionPolicy.parse(policy)
        return policy

    @property
    def models_to_load(self) -> list[str] | None:
        """The names of the models to load at the start; None: all."""
        if self.model_control != "explicit" or self.load == "*":
            return None
        return [name.strip() for name in self.load.split(",") if name.strip()]

    def policy_for(self, model: str) -> VersionPolicy:
        """Return which versions of a model to serve."""
        return VersionPolicy.parse(self.for_model(model).version_policy)

    def for_model(self, name: str) -> Self:
        """Return the settings of one model: its own where the file of model settings has any."""
        return self.model_copy(update=self._of_models.get(name, {}))

    def check_models(self, names: Collection[str]) -> None:
        """Raise StartupError when the file of model settings has a table for none of the models `names`."""
        for name in self._of_models:
            if name not in names:
                raise StartupError(
                    f"{self.model_settings}: [{name}] is not in the repository; it has {', '.join(names)}"
                )

    @cached_property
    def _of_models(self) -> dict[str, dict[str, Any]]:
        """Each model's own settings, checked as those of the command line are."""
        if self.model_settings is None:
            return {}
        try:
            tables = tomllib.loads(self.model_settings.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StartupError(f"the model settings {self.model_settings} cannot be read: {error}") from None
        return {name: self._checked(name, table) for name, table in tables.items()}

    def _checked(self, name: str, table: object) -> dict[str, Any]:
        where = f"{self.model_settings}: [{name}]"
        if not isinstance(table, dict) or not PER_MODEL.issuperset(table):
            got = ", ".join(table) if isinstance(table, dict) else repr(table)
            raise StartupError(f"{where}: expected a table of {', '.join(sorted(PER_MODEL))}, got {got}")
        try:
            checked = type(self).model_validate(self.model_dump() | table)
        except ValidationError as error:
            finding = error.errors()[0]
            message = f"{finding['loc'][0]}: {finding['msg']}, got {finding['input']!r}"
            raise StartupError(f"{where} {message}") from None
        return {key: getattr(checked, key) for key in table}


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
