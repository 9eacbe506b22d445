"""Griffe's extension for the docstrings of this project: `name: what it is` of a parameter becomes a list.

The docstrings are written to be read in an editor, where each parameter stands at the beginning of a line.
"""

import re
from typing import Any, Final

import griffe

_PARAMETER: Final = re.compile(r"^(?P<name>\w+): (?=\S)")


class Parameters(griffe.Extension):
    """Makes lists of parameters, and code of indented blocks."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:  # noqa: ANN401  griffe's signature
        """Mend the docstring of a function."""
        _mend(func.docstring, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:  # noqa: ANN401
        """Mend the docstring of a class, which says what its constructor takes."""
        # The constructor may be inherited: any name counts that is not a word of a sentence.
        _mend(cls.docstring, None)


def _mend(docstring: griffe.Docstring | None, names: set[str] | None) -> None:
    if docstring is None:
        return
    lines: list[str] = []
    listed = False
    for line in docstring.value.splitlines():
        found = _PARAMETER.match(line)
        if found and (names is None or found["name"] in names):
            # A list begins after an empty line.
            lines += [] if listed or not lines or not lines[-1] else [""]
            lines.append(f"- `{found['name']}`: {line[found.end() :]}")
            listed = True
            continue
        listed = listed and bool(line.strip())
        lines.append(line)
    docstring.value = "\n".join(lines)
