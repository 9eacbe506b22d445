"""What `vistazo evaluate` prints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table
from rich.text import Text

from vistazo_client._images import image_name
from vistazo_client.cli.tables import print_line, print_table
from vistazo_evaluate.evaluation.compared import Compared
from vistazo_evaluate.evaluation.judge import Answer, Judged
from vistazo_evaluate.evaluation.outcome import Outcome, confusion_matrix
from vistazo_evaluate.metrics.exclusive import ClassScores, ExclusiveMetrics
from vistazo_evaluate.metrics.multi_label import LabelScores, MultiLabelMetrics
from vistazo_evaluate.metrics.shares import Share

MOST_MATRIX_CLASSES: Final = 15
"""Of a confusion matrix that fits on a terminal."""

_MOST_CLASSES: Final = 50
_LOWEST_CLASSES: Final = 20
_MOST_CONFUSIONS: Final = 10
_MOST_DIFFERENCES: Final = 10

# Above it, chance alone would do as much too often to speak of a difference.
SIGNIFICANT: Final = 0.05


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A figure of the model, and of its baseline where there is one."""

    figure: str
    values: tuple[str, ...]


def print_outcome(outcome: Outcome) -> None:
    """Print the tables to standard output."""
    judged = outcome.judged
    table = Table(title=Text(f"vistazo evaluate: {image_name(outcome.dataset.source)}"), title_justify="left")
    table.add_column("figure")
    for name in _names(outcome):
        table.add_column(Text(name), justify="right")
    for row in summary_rows(outcome):
        table.add_row(row.figure, *map(Text, row.values))
    print_table(table)
    print_line(judged.matching.said)
    for note in outcome.notes:
        print_line(note)
    metrics = judged.metrics
    print_table(_classes_table(judged))
    if isinstance(metrics, ExclusiveMetrics):
        if len(metrics.classes) <= MOST_MATRIX_CLASSES:
            print_table(_matrix_table(judged, metrics))
        else:
            print_table(_confusions_table(judged, metrics))
        print_table(_coverage_table(metrics))
    else:
        print_table(_label_coverage_table(metrics))
    if outcome.compared is not None:
        print_line(verdict(outcome))
        if outcome.compared.differences:
            print_table(_differences_table(outcome.compared))


def summary_rows(outcome: Outcome) -> list[SummaryRow]:
    """Return the figures that matter most, failures among them."""
    judged = [outcome.judged, *([outcome.compared.baseline] if outcome.compared else [])]
    columns = [_summary(each) for each in judged]
    # Two models may have another number of classes: a figure that one of them lacks has a dash.
    figures = dict.fromkeys(figure for column in columns for figure in column)
    return [SummaryRow(figure, tuple(column.get(figure, "–") for column in columns)) for figure in figures]


def _summary(judged: Judged) -> dict[str, str]:
    metrics = judged.metrics
    found = {
        "images": f"{len(judged.right):,}",
        "answered": f"{int(judged.answers.answered.sum()):,}",
        "failed": f"{len(judged.answers.failures):,}",
    }
    if isinstance(metrics, MultiLabelMetrics):
        return found | {
            "mean average precision": percent(metrics.mean_average_precision),
            f"F1 at {metrics.threshold:g}, micro": percent(metrics.micro.f1),
            f"F1 at {metrics.threshold:g}, macro": percent(metrics.macro.f1),
            "every label right": _with_interval(metrics.exact_match),
            "Hamming loss": _fraction(metrics.hamming_loss),
            "expected calibration error": _fraction(metrics.calibration.expected_error),
        }
    found["top-1"] = _with_interval(metrics.top1)
    if metrics.top5 is not None:
        found["top-5"] = _with_interval(metrics.top5)
    return found | {
        "precision, macro": percent(metrics.macro.precision),
        "recall, macro": percent(metrics.macro.recall),
        "F1, macro": percent(metrics.macro.f1),
        "mean probability": percent(metrics.calibration.mean_probability),
        "expected calibration error": _fraction(metrics.calibration.expected_error),
    }


def verdict(outcome: Outcome) -> str:
    """Return what the comparison says, in two sentences; nothing where there is none."""
    if outcome.compared is None:
        return ""
    found = outcome.compared.comparison
    name, other = _names(outcome)
    images = found.agreement.of
    told = (
        f"Of {images:,} images that both answered, {name} alone is right on {found.only_model_right:,}, "
        f"{other} alone on {found.only_baseline_right:,}; the answers are the same on "
        f"{percent(found.agreement.value)}. "
    )
    if found.only_model_right + found.only_baseline_right == 0:
        return told + "Both are right on the same images."
    p_value = f"McNemar's exact test, p = {found.p_value:.3g}"
    if found.p_value >= SIGNIFICANT:
        return told + f"So many images show no difference that chance would not make ({p_value})."
    better = name if found.only_model_right > found.only_baseline_right else other
    return told + f"{better} is better, and hardly by chance ({p_value})."


def _names(outcome: Outcome) -> list[str]:
    model = outcome.judged.model
    names = [f"{model.name} version {model.version}"]
    if outcome.compared is not None:
        baseline = outcome.compared.baseline.model
        name = f"{baseline.name} version {baseline.version}"
        names.append(f"{name} (baseline)" if name == names[0] else name)
    return names


def _classes_table(judged: Judged) -> Table:
    metrics = judged.metrics
    every: list[ClassScores | LabelScores] = list(metrics.classes)
    shown = every
    title = "by class"
    if len(every) > _MOST_CLASSES:
        shown = sorted((each for each in every if each.images), key=lambda each: each.f1 or 0)[
            :_LOWEST_CLASSES
        ]
        title = f"by class: the {len(shown)} of lowest F1, of {len(every)}"
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    heads = ["images", "answers", "precision", "recall", "F1"]
    if isinstance(metrics, MultiLabelMetrics):
        heads.append("average precision")
    for head in heads:
        table.add_column(head, justify="right")
    for each in shown:
        values = [str(each.images), str(each.answers), *map(percent, (each.precision, each.recall, each.f1))]
        if isinstance(each, LabelScores):
            values.append(percent(each.average_precision))
        table.add_row(Text(judged.labels[each.index]), *values)
    return table


def _matrix_table(judged: Judged, metrics: ExclusiveMetrics) -> Table:
    table = Table(
        title="confusion: a row for what is shown, a column for what was answered", title_justify="left"
    )
    table.add_column("shown", overflow="fold")
    names = [judged.labels[each.index] for each in metrics.classes]
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for at, row in enumerate(confusion_matrix(metrics)):
        cells = [
            Text(str(count) if count else "·", style=("bold" if at == column else "red") if count else "dim")
            for column, count in enumerate(row)
        ]
        table.add_row(Text(names[at]), *cells)
    return table


def _confusions_table(judged: Judged, metrics: ExclusiveMetrics) -> Table:
    table = Table(title="most confused", title_justify="left")
    table.add_column("shown", overflow="fold")
    table.add_column("answered", overflow="fold")
    table.add_column("images", justify="right")
    wrong = sorted((cell for cell in metrics.confusion if cell[0] != cell[1]), key=lambda cell: -cell[2])
    for shown, said, images in wrong[:_MOST_CONFUSIONS]:
        table.add_row(Text(judged.labels[shown]), Text(judged.labels[said]), str(images))
    return table


def _coverage_table(metrics: ExclusiveMetrics) -> Table:
    table = Table(title="when answers below a probability are not used", title_justify="left")
    for head in ("probability at least", "images covered", "right of these"):
        table.add_column(head, justify="right")
    for each in metrics.coverage:
        table.add_row(f"{each.threshold:g}", _with_interval(each.covered), _with_interval(each.right))
    return table


def _label_coverage_table(metrics: MultiLabelMetrics) -> Table:
    table = Table(title="when labels below a probability are not used", title_justify="left")
    for head in ("probability at least", "images with a label", "precision", "recall"):
        table.add_column(head, justify="right")
    for each in metrics.coverage:
        table.add_row(
            f"{each.threshold:g}",
            _with_interval(each.covered),
            percent(each.precision),
            percent(each.recall),
        )
    return table


def _differences_table(compared: Compared) -> Table:
    every = compared.differences
    cut = f": {_MOST_DIFFERENCES} of {len(every):,}" if len(every) > _MOST_DIFFERENCES else ""
    table = Table(title=f"images on which they differ{cut}", title_justify="left")
    for head in ("image", "shows", "model", "baseline"):
        table.add_column(head, overflow="fold")
    for each in every[:_MOST_DIFFERENCES]:
        table.add_row(
            Text(each.image),
            Text(", ".join(each.truth)),
            _said(each.model, right=each.model_right),
            _said(each.baseline, right=each.baseline_right),
        )
    return table


def _said(answers: Sequence[Answer], *, right: bool) -> Text:
    said = ", ".join(f"{each.label} {each.probability:.1%}" for each in answers) or "nothing"
    return Text(f"{said} ({'right' if right else 'wrong'})", style="green" if right else "red")


def percent(value: float | None) -> str:
    """Return a share as a percentage, with a dash for what is not known; nearly all is not told as all."""
    if value is None:
        return "–"
    shown = f"{value:.1%}"
    if shown != "100.0%" or value >= 1:
        return shown
    return f"{math.floor(value * 10_000) / 100:.2f}%"


def _fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _with_interval(value: Share) -> str:
    if value.low is None or value.high is None:
        return "–"
    return f"{percent(value.value)} ({value.low:.1%} to {value.high:.1%})"
