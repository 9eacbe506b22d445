"""The page of metrics, from the registry that a server fills."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from prose import inline, row, table
from vistazo_server.telemetry.metrics import LOAD_OUTCOMES, OUTCOMES, STAGES, Metrics


@dataclass(frozen=True, slots=True)
class Family:
    """One metric as Prometheus shows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


def families() -> Iterator[Family]:
    """Yield every metric, also those that only a server with TLS has."""
    registry = CollectorRegistry()
    Metrics(registry).watch_certificate(lambda: 0.0)
    # The names of a metric's labels are in no public place as long as it has no series.
    for collector in registry._collector_to_names:  # noqa: SLF001
        (shown,) = collector.collect()
        name = f"{shown.name}_total" if shown.type == "counter" else shown.name
        yield Family(name, shown.type, tuple(collector._labelnames), shown.documentation)  # type: ignore[attr-defined]  # noqa: SLF001


def metrics_page() -> str:
    """Return a table of the metrics, and one of the values of their labels."""
    metrics = table("Metric", "Kind", "Labels", "Meaning") + "".join(
        row(
            f"`{family.name}`",
            family.kind,
            ", ".join(f"`{label}`" for label in family.labels),
            inline(family.meaning),
        )
        for family in families()
    )
    values = table("Label", "Of", "Values") + "".join(
        row(f"`{label}`", f"`{name}`", ", ".join(f"`{value}`" for value in known))
        for label, name, known in (
            ("outcome", "vistazo_inference_requests_total", OUTCOMES),
            ("outcome", "vistazo_model_loads_total", LOAD_OUTCOMES),
            ("stage", "vistazo_inference_stage_duration_seconds", STAGES),
        )
    )
    return f"## Series\n\n{metrics}\n## Values of labels\n\n{values}"
