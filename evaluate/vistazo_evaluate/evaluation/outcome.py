"""All that an evaluation found, and as one JSON object."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import vistazo_client
from vistazo_client._images import image_name
from vistazo_client.cli.files import plain_json
from vistazo_evaluate.dataset import Dataset
from vistazo_evaluate.evaluation.compared import Compared
from vistazo_evaluate.evaluation.judge import Judged
from vistazo_evaluate.metrics.exclusive import ExclusiveMetrics

MOST_MATRIX_CLASSES: Final = 100
"""The confusion matrix is also given whole, for at most so many classes."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound that was asked for."""

    option: str
    wanted: float
    measured: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """A data set, a model measured on it, perhaps beside a baseline, and whether it passed."""

    dataset: Dataset
    judged: Judged
    compared: Compared | None
    gates: tuple[Gate, ...]
    command: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know, a sentence each."""
        baseline = self.compared.baseline.notes if self.compared else ()
        return tuple(dict.fromkeys((*self.dataset.notes, *self.judged.notes, *baseline)))

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of the models whose weights are random."""
        judged = [self.judged, *([self.compared.baseline] if self.compared else [])]
        return tuple(each.model.name for each in judged if each.model.untrained)

    @property
    def passed(self) -> bool:
        """Whether every bound was kept."""
        return all(gate.passed for gate in self.gates)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return everything as plain values, NaN as null; `docs/guides/evaluate.md` lists the fields."""
    dataset = outcome.dataset
    found = {
        "vistazo": vistazo_client.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": outcome.command,
        "data": {
            "source": image_name(dataset.source),
            "images": len(dataset.paths),
            "names": len(dataset.distinct_names),
        },
        **_judged(outcome.judged),
        "mistakes": [_without_position(asdict(mistake)) for mistake in outcome.judged.mistakes(dataset)],
        "baseline": None if outcome.compared is None else _compared(outcome.compared),
        "gates": [asdict(gate) for gate in outcome.gates],
        "passed": outcome.passed,
        "notes": list(outcome.notes),
    }
    plain = plain_json(found)
    return plain if isinstance(plain, dict) else {}


def _judged(judged: Judged) -> dict[str, Any]:
    model = judged.model
    metrics = asdict(judged.metrics)
    if isinstance(judged.metrics, ExclusiveMetrics):
        metrics["confusion"] = _confusion(judged.metrics)
    return {
        "model": {
            "name": model.name,
            "version": model.version,
            "weights": model.weights,
            "precision": model.precision,
            "scores": str(model.scores),
            "classes": len(model.labels),
            "device": model.device,
        },
        "matching": {
            "by": judged.matching.by,
            "said": judged.matching.said,
            "names": dict(judged.matching.index_of),
        },
        "kind": "multi-label" if judged.multi_label else "exclusive",
        "images": {
            "total": len(judged.right),
            "answered": int(judged.answers.answered.sum()),
            "failed": len(judged.answers.failures),
        },
        "failures": [
            {"image": failure.image, "reason": failure.reason} for failure in judged.answers.failures
        ],
        "metrics": metrics,
    }


def confusion_matrix(metrics: ExclusiveMetrics) -> list[list[int]]:
    """Return the matrix of `metrics.classes`: a row for each class shown, a column for each answered."""
    at = {each.index: position for position, each in enumerate(metrics.classes)}
    matrix = [[0] * len(at) for _ in at]
    for shown, said, images in metrics.confusion:
        matrix[at[shown]][at[said]] = images
    return matrix


def _confusion(metrics: ExclusiveMetrics) -> dict[str, Any]:
    return {
        "classes": [each.index for each in metrics.classes],
        "matrix": confusion_matrix(metrics) if len(metrics.classes) <= MOST_MATRIX_CLASSES else None,
        "cells": [
            {"shown": shown, "answered": said, "images": images} for shown, said, images in metrics.confusion
        ],
    }


def _compared(compared: Compared) -> dict[str, Any]:
    return {
        **_judged(compared.baseline),
        "comparison": {
            **asdict(compared.comparison),
            "only_model_answered": compared.only_model_answered,
            "only_baseline_answered": compared.only_baseline_answered,
        },
        "differences": [_without_position(asdict(each)) for each in compared.differences],
    }


def _without_position(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "position"}
