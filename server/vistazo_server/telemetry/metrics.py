"""Prometheus metrics: names, labels and buckets, declared once.

Model labels only ever carry registered names; a caller cannot add a series. Histograms, not summaries,
so that replicas can be added up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from vistazo_server.telemetry.instruments import Counter, Histogram

# gRPC's own latency buckets (proposal A66), the range in which CNNs answer.
REQUEST_BUCKETS: Final = (
    *(0.0003, 0.0006, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04),
    *(0.05, 0.065, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.5, 0.8, 1.0, 2.0, 5.0, 10.0),
)
STAGE_BUCKETS: Final = REQUEST_BUCKETS[::2]
BATCH_SIZE_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
# 20 ms is what one callback may take, 100 ms what callers notice.
LOOP_DELAY_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

OUTCOMES: Final = ("ok", "invalid", "rejected", "deadline", "cancelled", "error")
"""How an inference request can end; `rejected` is the server's load, `error` its failure."""

LOAD_OUTCOMES: Final = ("ok", "failed")

STAGES: Final = ("queue", "preprocess", "compute", "postprocess")

_MODEL: Final = ("model", "version")
_RPC: Final = ("grpc_type", "grpc_service", "grpc_method")


class Metrics:
    """All series of one server, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "vistazo_inference_requests_total",
            "Inference requests by how they ended",
            (*_MODEL, "outcome"),
            registry=registry,
        )
        self.samples = Counter(
            "vistazo_inference_samples_total", "Samples that were run", _MODEL, registry=registry
        )
        self.batches = Counter(
            "vistazo_inference_batches_total", "Batches that were run", _MODEL, registry=registry
        )
        self.batch_size = Histogram(
            "vistazo_inference_batch_size",
            "Samples in a batch",
            _MODEL,
            buckets=BATCH_SIZE_BUCKETS,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "vistazo_inference_request_duration_seconds",
            "From the decoded request to its answer, successful requests",
            _MODEL,
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "vistazo_inference_stage_duration_seconds",
            "Time in each stage, successful requests; compute is of the batches that the request rode in",
            (*_MODEL, "stage"),
            buckets=STAGE_BUCKETS,
            registry=registry,
        )
        self.queue_samples = Gauge(
            "vistazo_inference_queue_samples", "Samples that wait for a batch", _MODEL, registry=registry
        )
        self.queue_limit = Gauge(
            "vistazo_inference_queue_limit", "Most samples that may wait", _MODEL, registry=registry
        )
        self.in_flight = Gauge(
            "vistazo_inference_in_flight_requests", "Admitted and unanswered", _MODEL, registry=registry
        )
        self.predicted_wait = Gauge(
            "vistazo_inference_predicted_wait_seconds",
            "Predicted time to the answer of a request of one sample that came now",
            _MODEL,
            registry=registry,
        )
        self.batch_latency = Gauge(
            "vistazo_inference_batch_latency_seconds",
            "The latency table: estimated time of one run",
            (*_MODEL, "batch_size"),
            registry=registry,
        )
        self.model_ready = Gauge(
            "vistazo_model_ready",
            "1: the version answers; 0: it is loading, failed, or being unloaded",
            _MODEL,
            registry=registry,
        )
        self.model_load_seconds = Gauge(
            "vistazo_model_load_duration_seconds",
            "Verification, loading and warm-up",
            _MODEL,
            registry=registry,
        )
        self.model_loads = Counter(
            "vistazo_model_loads_total",
            "Attempts to load a version of the model, by how they ended",
            ("model", "outcome"),
            registry=registry,
        )
        self.repository_readable = Gauge(
            "vistazo_repository_readable",
            "1: the model repository could be read when it was last looked at; 0: it could not",
            registry=registry,
        )
        self.repository_readable.set(1)
        self.preprocess_pending = Gauge(
            "vistazo_preprocess_pending_images",
            "Images of all models that wait to be decoded or are being decoded",
            registry=registry,
        )
        self.decode_failures = Counter(
            "vistazo_image_decode_failures_total", "Images that could not be used", _MODEL, registry=registry
        )
        self.rpc_started = Counter(
            "grpc_server_started_total", "RPCs begun on the server", _RPC, registry=registry
        )
        self.rpc_handled = Counter(
            "grpc_server_handled_total", "RPCs ended on the server", (*_RPC, "grpc_code"), registry=registry
        )
        self.rpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "From the RPC's start on the server to its end",
            _RPC,
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        loop_delay = Histogram(
            "vistazo_event_loop_delay_seconds",
            "How late a timer of the event loop fires, looked at some twenty times a second",
            (),
            buckets=LOOP_DELAY_BUCKETS,
            registry=registry,
        )
        self.loop_delay = loop_delay.labels()
        self._build_info = Gauge(
            "vistazo_build_info", "Always 1", ("version", "onnxruntime", "device"), registry=registry
        )

        # The sizes of each version's latency table, to remove their series with it.
        self._batch_sizes: dict[tuple[str, str], set[str]] = {}

    def load_ended(self, model: str, *, ok: bool) -> None:
        """Count an attempt to load a version of `model`."""
        for outcome in LOAD_OUTCOMES:
            self.model_loads.labels(model, outcome).inc(int(ok == (outcome == "ok")))

    def watch_latency(self, model: str, version: str, sizes: Mapping[int, Callable[[], float]]) -> None:
        """Read a version's latency table at each scrape, instead of the one that it had before."""
        self._forget_latency(model, version)
        for size, seconds in sizes.items():
            self.batch_latency.labels(model, version, str(size)).set_function(seconds)
        self._batch_sizes[model, version] = {str(size) for size in sizes}

    def forget_version(self, model: str, version: str) -> None:
        """Remove every series of a version that is no longer served, and with them what they read from."""
        for family in (
            *(self.samples, self.batches, self.batch_size, self.request_seconds, self.decode_failures),
            *(self.queue_samples, self.queue_limit, self.in_flight, self.predicted_wait),
            *(self.model_ready, self.model_load_seconds),
        ):
            family.remove(model, version)
        for outcome in OUTCOMES:
            self.requests.remove(model, version, outcome)
        for stage in STAGES:
            self.stage_seconds.remove(model, version, stage)
        self._forget_latency(model, version)

    def forget_model(self, model: str) -> None:
        """Remove the series of a model that is gone from the repository."""
        for outcome in LOAD_OUTCOMES:
            self.model_loads.remove(model, outcome)

    def _forget_latency(self, model: str, version: str) -> None:
        for size in self._batch_sizes.pop((model, version), ()):
            self.batch_latency.remove(model, version, size)

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Read when the TLS certificate ends at each scrape. Without TLS there is no such series."""
        Gauge(
            "vistazo_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of the gRPC port ends, in seconds since 1970",
            registry=self.registry,
        ).set_function(expires_at)

    def set_build_info(self, *, onnxruntime: str, device: str) -> None:
        """Say what is running."""
        self._build_info.labels(package_version("vistazo"), onnxruntime, device).set(1)


@dataclass(frozen=True, slots=True)
class RequestTotals:
    """What was counted of one model version's requests; the seconds are those of answered ones."""

    answered: int
    failed: int
    samples: int
    """That were run."""
    seconds: float
    queue_seconds: float
    preprocess_seconds: float
    compute_seconds: float
    """Of the batches that the requests rode in, whole."""
    postprocess_seconds: float


class ModelMetrics:
    """The series of one model version, looked up once instead of at each request."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._metrics = metrics
        self._labels = (model, version)
        self._samples = metrics.samples.labels(model, version)
        self._batches = metrics.batches.labels(model, version)
        self._batch_size = metrics.batch_size.labels(model, version)
        self._request_seconds = metrics.request_seconds.labels(model, version)
        self._decode_failures = metrics.decode_failures.labels(model, version)
        # A series that is missing until its first event hides that event from rate().
        self._outcomes = {outcome: metrics.requests.labels(model, version, outcome) for outcome in OUTCOMES}
        self._ok = self._outcomes["ok"]
        self._queue, self._preprocess, self._compute, self._postprocess = (
            metrics.stage_seconds.labels(model, version, stage) for stage in STAGES
        )

    def batch_ran(self, *, batch_size: int, seconds: float) -> None:
        """Count a batch; `seconds` is in the compute stage of each of its requests."""
        del seconds
        self._samples.inc(batch_size)
        self._batches.inc()
        self._batch_size.observe(batch_size)

    def loaded(self, *, seconds: float) -> None:
        """Say how long verification, loading and warm-up took."""
        self._metrics.model_load_seconds.labels(*self._labels).set(seconds)

    def request_ended(self, outcome: str) -> None:
        """Count a request that was not answered; `outcome` is one of OUTCOMES but ok."""
        self._outcomes[outcome].inc()

    def request_answered(
        self, *, seconds: float, queue: float, preprocess: float, compute: float, postprocess: float
    ) -> None:
        """Count a successful request and record its time and that of its stages, in seconds."""
        self._ok.inc()
        self._request_seconds.observe(seconds)
        self._queue.observe(queue)
        self._preprocess.observe(preprocess)
        self._compute.observe(compute)
        self._postprocess.observe(postprocess)

    def totals(self) -> RequestTotals:
        """Return the sums of what was counted of requests."""
        return RequestTotals(
            answered=self._ok.value,
            failed=sum(child.value for outcome, child in self._outcomes.items() if outcome != "ok"),
            samples=self._samples.value,
            seconds=self._request_seconds.sum,
            queue_seconds=self._queue.sum,
            preprocess_seconds=self._preprocess.sum,
            compute_seconds=self._compute.sum,
            postprocess_seconds=self._postprocess.sum,
        )

    def decode_failed(self) -> None:
        """Count an image that could not be used."""
        self._decode_failures.inc()

    def watch_queue(
        self,
        *,
        limit: int,
        samples: Callable[[], float],
        in_flight: Callable[[], float],
        predicted_wait: Callable[[], float],
    ) -> None:
        """Read the queue's gauges at each scrape, which costs the requests nothing."""
        self._metrics.queue_limit.labels(*self._labels).set(limit)
        self._metrics.queue_samples.labels(*self._labels).set_function(samples)
        self._metrics.in_flight.labels(*self._labels).set_function(in_flight)
        self._metrics.predicted_wait.labels(*self._labels).set_function(predicted_wait)

    def watch_latency(self, sizes: Mapping[int, Callable[[], float]]) -> None:
        """Read the latency table at each scrape: batch size → its current estimate."""
        self._metrics.watch_latency(*self._labels, sizes)
