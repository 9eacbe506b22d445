"""The page of settings, from the fields of `Settings`."""

import types
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from prose import inline, row, table
from vistazo_server.settings import PER_MODEL, Settings

_KINDS: Final[dict[Any, str]] = {
    bool: "on or off",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
}
_BOUNDS: Final = {
    annotated_types.Ge: ("ge", "at least {}"),
    annotated_types.Gt: ("gt", "over {}"),
    annotated_types.Le: ("le", "at most {}"),
    annotated_types.Lt: ("lt", "under {}"),
}


def settings_page() -> str:
    """Return an overview, and for each setting its flag, variable, kind, default and description."""
    fields = Settings.model_fields.items()
    overview = table("Flag", "Variable", "Default") + "".join(
        row(f"[`{flag(name)}`](#{name})", f"`{variable(name)}`", default(field)) for name, field in fields
    )
    sections = "\n\n".join(_section(name, field) for name, field in fields)
    return f"## Overview\n\n{overview}\n## One by one\n\n{sections}\n"


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"VISTAZO_{name.upper()}"


def default(field: FieldInfo) -> str:
    """Return the default of a setting, as `--help` shows it."""
    return f"`{'none' if field.default == '' else field.default}`"


def _section(name: str, field: FieldInfo) -> str:
    facts = [f"`{variable(name)}`", _kind(field), f"default {default(field)}"]
    if name in PER_MODEL:
        facts.append("[a model may have its own](../guides/many-models.md#give-a-model-settings-of-its-own)")
    return f"### `{flag(name)}` {{ #{name} }}\n\n{' · '.join(facts)}\n\n{inline(field.description or '')}"


def _kind(field: FieldInfo) -> str:
    plain = field.annotation
    if get_origin(plain) in (types.UnionType, Union):
        (plain,) = (part for part in get_args(plain) if part is not types.NoneType)
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in get_args(plain))
    bounds = [
        words.format(f"{getattr(bound, attribute):g}")
        for bound in field.metadata
        if type(bound) in _BOUNDS
        for attribute, words in [_BOUNDS[type(bound)]]
    ]
    return ", ".join([_KINDS[plain], *bounds])
