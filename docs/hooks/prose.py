"""Plain text of comments and docstrings → Markdown that says the same."""

import re

_CODE = re.compile(r"(`[^`]*`)")
_SPECIAL = re.compile(r"([<>*|\[\]])")


def inline(text: str) -> str:
    """Return one paragraph as one line; what Markdown would take for markup stands as it is."""
    parts = _CODE.split(" ".join(text.split()))
    # Inside a table's cell, `|` ends the cell in code, too.
    return "".join(
        part.replace("|", "&#124;") if part.startswith("`") else _SPECIAL.sub(_entity, part) for part in parts
    )


def paragraphs(text: str) -> str:
    """Return the paragraphs of `text`, divided by empty lines, as Markdown."""
    return "\n\n".join(inline(part) for part in re.split(r"\n\s*\n", text.strip()))


def row(*cells: str) -> str:
    """Return one row of a table."""
    return f"| {' | '.join(cells)} |\n"


def table(*heads: str) -> str:
    """Return the first two lines of a table."""
    return row(*heads) + row(*("---" for _ in heads))


def _entity(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};"
