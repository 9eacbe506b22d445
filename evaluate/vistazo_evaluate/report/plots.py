"""The plots of the page, by matplotlib: SVG for a light and for a dark page, and what they show in words."""

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vistazo_evaluate.evaluation.judge import Judged
from vistazo_evaluate.evaluation.outcome import confusion_matrix
from vistazo_evaluate.metrics.calibration import Bin
from vistazo_evaluate.metrics.exclusive import ExclusiveMetrics
from vistazo_evaluate.metrics.multi_label import MultiLabelMetrics
from vistazo_evaluate.metrics.shares import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With more classes nobody reads the names, and with far more nobody sees the squares.
_MOST_NAMED: Final = 40
_MOST_MATRIX: Final = 200
_MOST_NUMBERED: Final = 15
_MOST_BARS: Final = 30
_LONGEST_NAME: Final = 24
_MOST_POINTS: Final = 400

_LIGHT: Final = {
    "ink": "#1f2933",
    "soft": "#8a97a6",
    "blue": "#2563a8",
    "orange": "#c25b12",
    "on blue": "#ffffff",
    "none": "#e9edf1",
}
_DARK: Final = {
    "ink": "#e4e9ef",
    "soft": "#7b8794",
    "blue": "#6ea8e5",
    "orange": "#f0a35e",
    "on blue": "#14191e",
    "none": "#263039",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture, twice."""

    title: str
    alt: str
    """What it shows, for who does not see it."""
    light: str
    dark: str
    """data URIs of SVG."""


def make_plots(judged: Judged, baseline: Judged | None) -> list[Plot]:
    """Return the plots of a model; the baseline's curves are beside its own."""
    metrics = judged.metrics
    plots = [_reliability(judged, baseline)]
    if isinstance(metrics, ExclusiveMetrics):
        plots.append(_coverage(judged, baseline, metrics))
        if len(metrics.classes) <= _MOST_MATRIX:
            plots.append(_confusion(judged, metrics))
        bars = [(_name(judged, each.index), each.f1 or 0.0) for each in metrics.classes if each.images]
        plots.append(_bars("F1 by class", bars))
    else:
        plots.append(_precision_recall(metrics))
        known = [(_name(judged, each.index), each.average_precision) for each in metrics.classes]
        plots.append(
            _bars("Average precision by class", [(name, value) for name, value in known if value is not None])
        )
    return plots


def _reliability(judged: Judged, baseline: Judged | None) -> Plot:
    found = judged.metrics.calibration

    def draw(axes: "Axes", colours: dict[str, str]) -> None:
        axes.plot([0, 1], [0, 1], color=colours["soft"], linestyle="--", linewidth=1, label="as promised")
        total = sum(each.count for each in found.bins)
        axes.bar(
            [(each.low + each.high) / 2 for each in found.bins],
            [each.count / total for each in found.bins],
            width=1 / len(found.bins) * 0.9,
            color=colours["soft"],
            alpha=0.35,
            label="share of the answers",
        )
        for which, name, colour in ((judged, "model", "blue"), (baseline, "baseline", "orange")):
            if which is not None:
                _draw_bins(
                    axes,
                    which.metrics.calibration.bins,
                    colour=colours[colour],
                    label=f"right, {name}" if baseline is not None else "right, 95 % interval",
                )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability", ylabel="share that was right")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        _percent_axes(axes)

    error = found.expected_error or 0.0
    alt = (
        f"Reliability: mean probability against the share that was right, in {len(found.bins)} bins. "
        f"Expected calibration error {error:.3f}; mean probability {found.mean_probability or 0:.3f}, "
        f"share right {found.right or 0:.3f}."
    )
    return _plot("Reliability", alt, draw)


def _draw_bins(axes: "Axes", bins: Sequence[Bin], *, colour: str, label: str) -> None:
    """Draw what was right in each bin, with its interval: a bin of two answers says next to nothing."""
    filled = [each for each in bins if each.count]
    right = np.array([each.right or 0.0 for each in filled])
    shares = [share(round((each.right or 0.0) * each.count), each.count) for each in filled]
    low = right - np.array([each.low or 0.0 for each in shares])
    high = np.array([each.high or 0.0 for each in shares]) - right
    axes.errorbar(
        [each.probability or 0.0 for each in filled],
        right,
        yerr=np.clip([low, high], 0, 1),
        fmt="o-",
        color=colour,
        ecolor=colour,
        elinewidth=0.9,
        label=label,
        linewidth=1.2,
        markersize=4,
    )


def _percent_axes(axes: "Axes", *, y: bool = True) -> None:
    from matplotlib.ticker import PercentFormatter  # noqa: PLC0415 - slow to import

    axes.xaxis.set_major_formatter(PercentFormatter(1))
    if y:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _coverage(judged: Judged, baseline: Judged | None, metrics: ExclusiveMetrics) -> Plot:
    def draw(axes: "Axes", colours: dict[str, str]) -> None:
        lowest = 1.0
        for which, name, colour in ((judged, "model", "blue"), (baseline, "baseline", "orange")):
            if which is not None:
                covered, right = _accuracy_by_coverage(which)
                lowest = min(lowest, float(right.min(initial=1.0)))
                axes.plot(covered, right, color=colours[colour], label=name)
        axes.set(
            xlim=(0, 1),
            ylim=(max(lowest - 0.01, 0), 1.001),
            xlabel="share of the images that is answered, the surest first",
            ylabel="share that was right",
        )
        _percent_axes(axes)
        if baseline is not None:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)

    points = [
        f"at {each.threshold:g} it is {each.covered.value:.1%} of the images, {each.right.value:.1%} right"
        for each in metrics.coverage
        if each.covered.value is not None and each.right.value is not None
    ]
    return _plot("Coverage", f"Accuracy when unsure answers are not used: {'; '.join(points)}.", draw)


def _accuracy_by_coverage(judged: Judged) -> tuple[Any, Any]:
    kept = judged.answers.answered
    probability, right = judged.answers.probabilities[kept, 0], judged.right[kept]
    order = np.argsort(-probability, kind="stable")
    count = np.arange(1, len(order) + 1)
    points = np.unique(np.linspace(0, len(order) - 1, min(len(order), _MOST_POINTS)).astype(int))
    return (count / len(order))[points], (np.cumsum(right[order]) / count)[points]


def _precision_recall(metrics: MultiLabelMetrics) -> Plot:
    def draw(axes: "Axes", colours: dict[str, str]) -> None:
        thresholds = [each.threshold for each in metrics.coverage]
        for field, colour in (("precision", "blue"), ("recall", "orange")):
            values = [getattr(each, field) for each in metrics.coverage]
            axes.plot(
                thresholds,
                [np.nan if v is None else v for v in values],
                "o-",
                color=colours[colour],
                label=field,
            )
        axes.set(xlim=(0.45, 1), ylim=(0, 1.02), xlabel="threshold", ylabel="over all labels")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        _percent_axes(axes)

    points = [
        f"at {each.threshold:g} precision {each.precision or 0:.1%}, recall {each.recall or 0:.1%}"
        for each in metrics.coverage
    ]
    return _plot("Precision and recall by threshold", f"Over all labels: {'; '.join(points)}.", draw)


def _confusion(judged: Judged, metrics: ExclusiveMetrics) -> Plot:
    matrix = np.array(confusion_matrix(metrics))
    names = [_name(judged, each.index) for each in metrics.classes]
    rows = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)

    def draw(axes: "Axes", colours: dict[str, str]) -> None:
        from matplotlib.colors import LinearSegmentedColormap  # noqa: PLC0415 - slow to import

        shading = LinearSegmentedColormap.from_list("shares", [colours["none"], colours["blue"]])
        axes.imshow(shares, cmap=shading, vmin=0, vmax=1)
        axes.grid(visible=False)
        if len(names) <= _MOST_NAMED:
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
        if len(names) <= _MOST_NUMBERED:
            for row, column in np.ndindex(*matrix.shape):
                if matrix[row, column]:
                    axes.text(
                        column, row, str(matrix[row, column]), ha="center", va="center", fontsize=9,
                        color=colours["on blue"] if shares[row, column] > 0.5 else colours["ink"],
                    )  # fmt: skip
        axes.set(xlabel="answered", ylabel="shown")

    wrong = int(matrix.sum() - np.trace(matrix))
    alt = (
        f"Confusion matrix of {len(names)} classes: {int(np.trace(matrix))} images on the diagonal, answered "
        f"rightly, {wrong} beside it. Its numbers are in the tables of this page."
    )
    return _plot("Confusion matrix", alt, draw, size=(6.2, 5.6))


def _bars(title: str, values: Sequence[tuple[str, float]]) -> Plot:
    lowest = sorted(values, key=lambda each: each[1])[:_MOST_BARS]
    cut = len(values) > _MOST_BARS

    def draw(axes: "Axes", colours: dict[str, str]) -> None:
        names = [name for name, _ in lowest]
        axes.barh(range(len(lowest)), [value for _, value in lowest], color=colours["blue"], height=0.7)
        axes.set_yticks(range(len(lowest)), names)
        for at, (_, value) in enumerate(lowest):
            inside = value > 0.15
            axes.text(
                value - 0.01 if inside else value + 0.01, at, f"{value:.1%}", va="center", fontsize=8,
                ha="right" if inside else "left",
                color=colours["on blue"] if inside else colours["ink"],
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(len(lowest) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        _percent_axes(axes, y=False)

    shown = f"{title}, the {_MOST_BARS} lowest of {len(values)}" if cut else f"{title}, the lowest first"
    told = "; ".join(f"{name} {value:.1%}" for name, value in lowest[:10])
    height = max(1.6, 0.8 + 0.26 * len(lowest))
    return _plot(shown, f"{shown}: {told or 'none'}.", draw, size=(6.2, height))


def _plot(
    title: str,
    alt: str,
    draw: Callable[["Axes", dict[str, str]], None],
    *,
    size: tuple[float, float] = (6.2, 4.2),
) -> Plot:
    return Plot(title, alt, _svg(draw, _LIGHT, size), _svg(draw, _DARK, size))


def _svg(
    draw: Callable[["Axes", dict[str, str]], None], colours: dict[str, str], size: tuple[float, float]
) -> str:
    from matplotlib import rc_context  # noqa: PLC0415 - slow to import
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    ink = colours["ink"]
    style: Any = {
        "axes.edgecolor": colours["soft"], "axes.labelcolor": ink, "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "grid.alpha": 0.25,
        "grid.color": colours["soft"], "legend.frameon": False, "legend.labelcolor": ink,
        # What a label has between two dollars is no formula.
        "text.parse_math": False, "text.color": ink, "xtick.color": ink, "ytick.color": ink,
        # The same ids each time.
        "svg.hashsalt": "vistazo",
    }  # fmt: skip
    with rc_context(style), warnings.catch_warnings():
        # A label may have letters that the font has not.
        warnings.simplefilter("ignore")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot(), colours)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()


def _name(judged: Judged, index: int) -> str:
    """Return what a class is called in a plot: its index where the font cannot write its label."""
    name = judged.labels[index]
    if not _in_font(name):
        return f"class {index}"
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _in_font(text: str) -> bool:
    """Return whether matplotlib's own font has every letter of `text`."""
    from matplotlib import font_manager  # noqa: PLC0415

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    found = False
    with suppress(ValueError):
        found = all(letter.isprintable() and font.get_char_index(ord(letter)) for letter in text)
    return found
