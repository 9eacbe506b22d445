"""Latency by percentile: as a PNG through matplotlib, or as text for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from rich.table import Table
from rich.text import Text

from vistazo_bench.measuring.records import FloatArray, percentile

MS = 1000.0

PERCENTILES: Final = (1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)

# Width of the text plot's bars, and its marks from p1 to p99.9.
BAR_CHARACTERS: Final = 48

# More lines than this cannot be told apart.
MOST_SERIES: Final = 18


def write_png(path: Path, series: Mapping[str, FloatArray], *, title: str) -> None:
    """Draw latency (ms, logarithmic) over the percentile. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.figure import Figure  # noqa: PLC0415  optional, and slow to import
    from matplotlib.ticker import LogLocator, NullLocator  # noqa: PLC0415

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, seconds in _drawn(series).items():
        ordered = np.sort(seconds) * MS
        # 1 / (1 - q): each step right is a ten times rarer request.
        rank = (np.arange(len(ordered)) + 0.5) / len(ordered)
        axes.plot(1 / (1 - rank), ordered, label=name)
    ticks = (50.0, 75.0, 90.0, 99.0, 99.9)
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - tick / 100) for tick in ticks], [f"p{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(1, 1000)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("latency, ms")
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def text_plot(series: Mapping[str, FloatArray], *, unicode: bool) -> Table:
    """Return a table with a bar for each series: on one logarithmic axis, where its percentiles lie."""
    drawn = _drawn(series)
    table = Table(title=Text("latency, ms"), title_justify="left")
    table.add_column("load", overflow="fold")
    for name in ("p50", "p90", "p99"):
        table.add_column(name, justify="right")
    if not drawn:
        return table
    low = min(percentile(seconds, PERCENTILES[0]) for seconds in drawn.values())
    high = max(percentile(seconds, PERCENTILES[-1]) for seconds in drawn.values())
    table.add_column(f"{low * MS:.3g} ms to {high * MS:.3g} ms, logarithmic: p1 … p50 … p99.9", no_wrap=True)
    for name, seconds in drawn.items():
        p50, p90, p99 = (f"{percentile(seconds, q) * MS:.2f}" for q in (50, 90, 99))
        table.add_row(Text(name), p50, p90, p99, Text(_bar(seconds, low, high, unicode=unicode)))
    return table


def _drawn(series: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return dict([(name, seconds) for name, seconds in series.items() if len(seconds)][:MOST_SERIES])


def _bar(seconds: FloatArray, low: float, high: float, *, unicode: bool) -> str:
    light, dark, mark = ("░", "█", "┃") if unicode else (".", "#", "|")
    span = np.log(high / low) if high > low else 1.0

    def column(q: float) -> int:
        share = np.log(max(percentile(seconds, q), low) / low) / span
        return min(int(share * BAR_CHARACTERS), BAR_CHARACTERS - 1)

    line = [" "] * BAR_CHARACTERS
    for start, end, character in ((1.0, 99.9, light), (10.0, 90.0, dark)):
        for at in range(column(start), column(end) + 1):
            line[at] = character
    line[column(50)] = mark
    return "".join(line)
