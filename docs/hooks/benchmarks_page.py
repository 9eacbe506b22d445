"""The table of the benchmarks, from what `make bench` measured."""

import json
from pathlib import Path
from typing import Any, Final

from prose import inline, row, table

RESULTS: Final = Path(__file__).parents[2] / "bench" / "results.json"


def benchmarks_page() -> str:
    """Return what ran where, and a table of the figures."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    machine = results["machine"]
    rows = "".join(
        row(inline(figure["name"]), measured(figure), target(figure), verdict(figure))
        for figure in results["figures"]
    )
    return (
        f"{machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, "
        f"ONNX Runtime {machine['versions']['onnxruntime']}.\n\n"
        f"{table('Figure', 'Measured', 'Target', 'Met')}{rows}"
    )


def measured(figure: dict[str, Any]) -> str:
    """Return the median with its unit, and the rounds from least to most."""
    value, unit = figure["measured"], figure["unit"]
    low, high = figure["low"], figure["high"]
    rounds = "" if low is None or low == high else f" ({number(low, unit)} to {number(high, unit)})"
    return f"{number(value, unit)}{_suffix(unit)}{rounds}"


def target(figure: dict[str, Any]) -> str:
    """Return what was wanted."""
    sign = "≥" if figure["better"] == "higher" else "≤"
    value, unit = figure["target"], figure["unit"]
    return f"{sign} {f'{value:,.0f}' if unit == 'MB' else f'{value:g}'}{_suffix(unit)}"


def verdict(figure: dict[str, Any]) -> str:
    """Return whether it was reached."""
    return "yes" if figure["met"] else "**no**"


def number(value: float, unit: str) -> str:
    """Return a number with as many digits as it is worth."""
    if unit == "MB":
        return f"{value:,.0f}"
    return f"{value:.3f}" if unit == "×" else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


def _suffix(unit: str) -> str:
    return "" if unit == "×" else f" {unit}"
