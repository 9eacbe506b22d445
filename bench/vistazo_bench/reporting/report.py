"""The result: a table for people, and one JSON object for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from vistazo_bench.measuring.figures import Figure
from vistazo_bench.measuring.machine import describe_machine
from vistazo_bench.measuring.rig import Rig
from vistazo_client.cli.files import plain_json, write_atomically

FORMAT = 1
"""Of the JSON object; changes when a field changes its meaning."""


def figures_table(figures: Sequence[Figure], *, title: str) -> Table:
    """Return figure, measured, spread, target and whether it is met."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("figure", overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("min – max", justify="right")
    table.add_column("target", justify="right")
    table.add_column("")
    table.add_column("note", overflow="fold")
    for figure in figures:
        name = f"{figure.line}. {figure.name}" if figure.line else figure.name
        between = ""
        if figure.low is not None and figure.high is not None and figure.low != figure.high:
            between = f"{_number(figure.low)} – {_number(figure.high)}"
        table.add_row(
            Text(name),
            "–" if figure.measured is None else f"{_number(figure.measured)} {figure.unit}",
            between,
            _target(figure),
            _verdict(figure),
            Text(figure.note),
        )
    return table


def result_object(
    figures: Sequence[Figure], rig: Rig, *, scenario: str, command: str, commands: Sequence[str]
) -> dict[str, object]:
    """Return everything about the run as plain JSON values; what is not a number is null."""
    found: dict[str, object] = {
        "format": FORMAT,
        "scenario": scenario,
        "command": command,
        "server_commands": list(commands),
        "machine": describe_machine(),
        "cpu_elsewhere_share": rig.elsewhere(),
        "answers_checked": rig.checked,
        "answers_wrong": len(rig.wrong),
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
        "segments": rig.segments,
    }
    clean = plain_json(found)
    return clean if isinstance(clean, dict) else {}


def one_line(result: dict[str, object]) -> str:
    """Return the object as JSON on one line."""
    return json.dumps(result, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, result: dict[str, object]) -> None:
    """Write the object to `path`: whole, or not at all."""
    write_atomically(path, json.dumps(result, allow_nan=False, ensure_ascii=False, indent=2) + "\n")


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return f"{'≥' if figure.better == 'higher' else '≤'} {figure.target:,g} {figure.unit}"


def _verdict(figure: Figure) -> Text:
    if figure.met is None:
        return Text("not measured" if figure.target is not None else "", style="yellow")
    return Text("met", style="green") if figure.met else Text("missed", style="bold red")
