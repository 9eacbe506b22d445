"""The page: what an evaluation found, for people, in one file that loads nothing."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import vistazo_client
from vistazo_client._images import image_name
from vistazo_client.errors import one_line
from vistazo_evaluate.dataset import Dataset
from vistazo_evaluate.evaluation.compared import Difference
from vistazo_evaluate.evaluation.judge import Answer, Judged, Mistake
from vistazo_evaluate.evaluation.outcome import Outcome
from vistazo_evaluate.metrics.exclusive import ExclusiveMetrics
from vistazo_evaluate.metrics.shares import Share
from vistazo_evaluate.report.plots import make_plots
from vistazo_evaluate.report.thumbnails import thumbnail
from vistazo_evaluate.tables import percent, summary_rows, verdict

MOST_THUMBNAILS: Final = 24
"""Of the worst mistakes, and of the images on which two models differ."""

_MOST_CONFUSIONS: Final = 20
_MOST_FAILURES: Final = 100
_MOST_ANSWERS: Final = 4


@dataclass(frozen=True, slots=True)
class _Pictured:
    """An image of the page, and what is said of it."""

    image: str
    thumbnail: str | None
    truth: str
    answers: Sequence[tuple[str, str, bool]]
    """Who said it, or nothing where there is one model; what; whether it is right."""


def make_page(outcome: Outcome) -> str:
    """Return the page as HTML. Images that cannot be read again are left without their thumbnail."""
    judged, dataset = outcome.judged, outcome.dataset
    mistakes = list(judged.mistakes(dataset))
    differences = outcome.compared.differences if outcome.compared else ()
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["share"] = _share
    environment.filters["interval"] = _interval
    environment.filters["percent"] = percent
    template = environment.from_string((files(__package__) / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        # Nothing is loaded and nothing runs; the style is this one.
        csp=f"default-src 'none'; img-src data:; style-src 'sha256-{_sha256(style)}'; base-uri 'none'; "
        "form-action 'none'",
        style=Markup(style),  # noqa: S704  our own file
        outcome=outcome,
        judged=judged,
        baseline=outcome.compared.baseline if outcome.compared else None,
        metrics=judged.metrics,
        exclusive=isinstance(judged.metrics, ExclusiveMetrics),
        source=image_name(dataset.source),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=vistazo_client.__version__,
        command=one_line(outcome.command),
        summary=summary_rows(outcome),
        verdict=verdict(outcome),
        plots=make_plots(judged, outcome.compared.baseline if outcome.compared else None),
        confusions=_confusions(judged),
        mistakes=[_mistake(dataset, each) for each in mistakes[:MOST_THUMBNAILS]],
        mistakes_in_all=len(mistakes),
        differences=[_difference(dataset, each, outcome) for each in differences[:MOST_THUMBNAILS]],
        failures=[(each.image, one_line(each.reason)) for each in judged.answers.failures[:_MOST_FAILURES]],
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _confusions(judged: Judged) -> list[tuple[str, str, int]]:
    """Return the pairs that are confused most: shown, answered, images."""
    if not isinstance(judged.metrics, ExclusiveMetrics):
        return []
    wrong = [cell for cell in judged.metrics.confusion if cell[0] != cell[1]]
    wrong.sort(key=lambda cell: -cell[2])
    return [
        (judged.labels[shown], judged.labels[said], images)
        for shown, said, images in wrong[:_MOST_CONFUSIONS]
    ]


def _mistake(dataset: Dataset, mistake: Mistake) -> _Pictured:
    return _Pictured(
        mistake.image,
        thumbnail(dataset.paths[mistake.position]),
        _labels(mistake.truth),
        [("", _answers(mistake.answers), False)],
    )


def _difference(dataset: Dataset, difference: Difference, outcome: Outcome) -> _Pictured:
    baseline = outcome.compared.baseline.model if outcome.compared else outcome.judged.model
    model = outcome.judged.model
    return _Pictured(
        difference.image,
        thumbnail(dataset.paths[difference.position]),
        _labels(difference.truth),
        [
            (f"{model.name} {model.version}", _answers(difference.model), difference.model_right),
            (f"{baseline.name} {baseline.version}", _answers(difference.baseline), difference.baseline_right),
        ],
    )


def _labels(labels: Sequence[str]) -> str:
    return _some([one_line(label) for label in labels]) or "none of the labels"


def _answers(answers: Sequence[Answer]) -> str:
    said = _some([f"{one_line(each.label)} {each.probability:.1%}" for each in answers])
    return said or "nothing above the threshold"


def _some(parts: Iterable[str]) -> str:
    every = list(parts)
    more = f" and {len(every) - _MOST_ANSWERS} more" if len(every) > _MOST_ANSWERS else ""
    return ", ".join(every[:_MOST_ANSWERS]) + more


def _share(value: Share) -> str:
    return percent(value.value)


def _interval(value: Share) -> str:
    return "–" if value.low is None or value.high is None else f"{value.low:.1%} to {value.high:.1%}"
