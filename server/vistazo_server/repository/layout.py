"""Layouts that are not served as they are: what lies there, what was expected, and what to do about it.

A repository is `<name>/<version>/model.onnx`, as Triton has it. Whatever else people put into one is named:
a model that is silently not there costs its owner an afternoon. Hidden names and a system's own are not.
"""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vistazo_server.artifact.model_formats import (
    CONFIG_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    is_model,
    is_onnx,
    listed,
    other_format,
    printable,
    visible_names,
)
from vistazo_server.repository.versions import MOST_VERSION, is_version

# What a folder of the Hugging Face hub has beside its graph.
_HUB_FILES: Final = ("config.json", "preprocessor_config.json", "processor_config.json")

# A name that somebody may have meant as a version.
_VERSION_LIKE: Final = re.compile(r"[vV]?(er|ersion)?[-_. ]?[-+]?\d[\d.]*([-_.].*)?")
_VERSION_WORDS: Final = frozenset({"latest", "current", "stable", "prod", "production", "newest"})

# Of one folder's strays, those that are told.
MOST_STRAYS: Final = 20


@dataclass(frozen=True, slots=True, order=True)
class Stray:
    """Something in the repository that is not served."""

    path: str
    reason: str
    """What it is, or what was expected."""
    to_serve_it: str

    def is_in(self, folder: Path) -> bool:
        """Return whether it is the folder, or something of it."""
        return self.path == str(folder) or self.path.startswith(f"{folder}/")

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; {self.to_serve_it}"


def strays_in_root(root: Path, entries: Iterable["os.DirEntry[str]"]) -> list[Stray]:
    """Return what lies beside the models and is no folder of one."""
    strays = []
    for entry in entries:
        if stray := _stray_in_root(root, entry.name):
            strays.append(stray)
        if len(strays) >= MOST_STRAYS:
            strays.append(_more(root))
            break
    return strays


def _stray_in_root(root: Path, name: str) -> Stray | None:
    path = root / name
    if is_dangling(path):
        return _dangling(path)
    if not name.isprintable() or not name.strip():
        reason = "a model's name has to be printable UTF-8, and not blank"
        return Stray(_shown(path), reason, "rename it") if _is_folder(path) or is_model(name) else None
    if is_onnx(name):
        return Stray(
            str(path),
            f"a model is a folder, expected {root / path.stem}/1/{MODEL_FILE}",
            f"move it there, or import it with `vistazo import {path} --models {root} --name {path.stem}`",
        )
    if other := other_format(name):
        return Stray(str(path), f"{other[0]} is not served", other[1])
    return None


def strays_in_model(root: Path, name: str, names: Sequence[str], versions: Collection[str]) -> list[Stray]:
    """Return what is not served of a model's folder, which has `names` and of them the `versions`."""
    model = root / name
    strays: list[Stray] = []
    if not versions and _is_hub_folder(model, names):
        reason = (
            f"a folder of the Hugging Face hub; it has no version folder, expected {model}/1/{MODEL_FILE}"
        )
        return [Stray(str(model), reason, f"import it with `vistazo import {model} --models {root}`")]
    for one in names:
        if one not in versions and (stray := _stray_in_model(model, one, names)):
            strays.append(stray)
        if len(strays) >= MOST_STRAYS:
            strays.append(_more(model))
            break
    if versions:
        strays += [_beside(model / one) for one in names if is_onnx(one)][:MOST_STRAYS]
    elif whole := _without_version(model, names):
        strays.append(whole)
    elif not strays:
        expected = f"it has no version folder, expected {model}/1/{MODEL_FILE}"
        has = f"; it has {listed(names)}" if names else ", and nothing else"
        strays.append(Stray(str(model), expected + has, "put a model there, or remove the folder"))
    return strays


def _without_version(model: Path, names: Sequence[str]) -> Stray | None:
    """Return what a folder without any version is; None where that is not known."""
    expected = f"expected {model}/1/{MODEL_FILE}"
    graphs = [one for one in names if is_onnx(one)]
    if graphs:
        which = "it" if len(graphs) == 1 else "the one to serve"
        return Stray(
            ", ".join(_shown(model / one) for one in graphs[:3]),
            f"it has no version folder, {expected}",
            f"make the folder {model}/1 and move {which} there as {MODEL_FILE}, with what belongs to it",
        )
    for one in names:
        if other := other_format(one):
            return Stray(_shown(model / one), f"{other[0]} is not served, {expected}", other[1])
    if repositories := [one for one in names[:MOST_STRAYS] if _has_versions(model / one)]:
        has = f"it looks like a repository itself, with the models {listed(repositories)}"
        return Stray(str(model), has, f"serve it with --models {model}")
    return None


def _is_hub_folder(folder: Path, names: Collection[str]) -> bool:
    has_graph = any(map(is_onnx, [*names, *_names(folder / "onnx")]))
    return has_graph and any(name in names for name in _HUB_FILES)


def _stray_in_model(model: Path, name: str, names: Sequence[str]) -> Stray | None:
    """Return what is wrong with something in a model's folder that may be meant as a version."""
    path = model / name
    if is_dangling(path):
        return _dangling(path)
    is_folder = _is_folder(path)
    if is_version(name) and not is_folder:
        return Stray(str(path), "a version is a folder, and this is a file", "remove it")
    if is_version(name) or not is_folder:
        return None
    number = _number(name)
    if number:
        return _padded(path, number, [one for one in names if one != name and _number(one) == number])
    return _misnamed(path)


def _misnamed(path: Path) -> Stray | None:
    """Return what is wrong with a folder that stands for no number; None where it is none of a version."""
    name = path.name
    if path.is_symlink() and is_version(path.resolve().name):
        reason = f"a link to {_target(path)}; only numbers are versions, and callers get the highest"
        return Stray(_shown(path), reason, "ask for the version by its number")
    looks_so = name.lower() in _VERSION_WORDS or _VERSION_LIKE.fullmatch(name)
    if not looks_so and not any(is_model(one) or one == MANIFEST_FILE for one in _names(path)):
        return None
    return Stray(
        _shown(path),
        f"a version's name is a whole number from 1 to {MOST_VERSION}, got {printable(name)}",
        "rename it to such a number; callers get the highest",
    )


def _padded(path: Path, number: str, others: Sequence[str]) -> Stray:
    """Return what is wrong with a folder whose name only stands for a number."""
    rule = f"a version's name is a whole number without anything before it, expected {number}"
    if not others:
        return Stray(str(path), rule, f"rename it to {path.parent / number}")
    served = f"{path.parent / number}, which is the one served" if number in others else listed(others)
    return Stray(
        str(path), f"{rule}; there are two of that number, this and {served}", "rename one to another number"
    )


def _number(name: str) -> str:
    """Return the version that a name with zeros or a v before it stands for; empty: none."""
    found = re.fullmatch(r"[vV]?0*([1-9][0-9]*)", name, re.ASCII)
    return found[1] if found and is_version(found[1]) else ""


def _more(folder: Path) -> Stray:
    return Stray(
        str(folder),
        f"more than {MOST_STRAYS} things there are not served; the first are told",
        "look at them",
    )


def _beside(path: Path) -> Stray:
    return Stray(
        _shown(path),
        "it lies beside the version folders, and those are served",
        f"move it to a version's folder as {MODEL_FILE}, or remove it",
    )


def wrong_root(root: Path) -> str:
    """Return what is wrong with a repository that has no model, and what to say; empty: nothing is known."""
    names = _names(root)
    versions = [name for name in names if is_version(name) and _is_folder(root / name)]
    if _is_hub_folder(root, names):
        return (
            "it is a folder of the Hugging Face hub: import it with "
            f"`vistazo import {root} --models MODELS`, and serve MODELS"
        )
    own = os.path.basename(os.path.realpath(root))  # noqa: PTH119  the name of what a link leads to
    files = [name for name in names if is_onnx(name) or name == MANIFEST_FILE]
    if files and is_version(own):
        return f"it is one version of a model itself, with {listed(files)}: say --models {_above(root, 2)}"
    if versions:
        return f"it is one model itself, with {_versions(versions)}: say --models {_above(root, 1)}"
    if MODEL_FILE in names:
        return (
            f"it is a model itself, without a version folder: make the folder {root}/1, move {MODEL_FILE} "
            f"there with what belongs to it, and say --models {_above(root, 1)}"
        )
    if CONFIG_FILE in names:
        return f"it has a {CONFIG_FILE}, so it is one model itself, without a version folder {root}/1"
    return ""


def check_root(root: Path) -> str:
    """Return why a repository's folder cannot be looked at, and what to do; empty: it can."""
    make = f"make one with `vistazo export resnet18 --models {root}` or name another with --models"
    try:
        kind = root.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is no folder; it is a link that leads back to itself"
        if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
            return f"cannot be read: {error.strerror}"
        link = f"it is a link to {_target(root)}, which is not there; " if root.is_symlink() else ""
        return f"is no folder; {link}{make}"
    if stat.S_ISDIR(kind):
        return ""
    if is_onnx(root.name):
        return (
            "is no folder; it is one file, and a repository is <name>/<version>/model.onnx: import it with "
            f"`vistazo import {root} --models MODELS --name NAME`, and serve MODELS"
        )
    return f"is no folder; it is a file; {make}"


def is_dangling(path: Path) -> bool:
    """Return whether a path is a link to nothing."""
    try:
        return path.is_symlink() and not path.exists()
    except OSError:
        return False  # that it cannot be read shows when it is


def _dangling(path: Path) -> Stray:
    reason = f"a link to {_target(path)}, which is not there"
    return Stray(_shown(path), reason, "put it there, or remove the link")


def _target(link: Path) -> str:
    return repr(str(link.readlink()))


def _shown(path: Path) -> str:
    return str(path.with_name(printable(path.name)))


def _above(root: Path, levels: int) -> str:
    """Return the folder so many levels above, as the user may say it."""
    path = Path(os.path.realpath(root)) if root.is_symlink() else root
    if len(path.parts) <= levels or ".." in path.parts:
        path = path.absolute()
    return os.path.normpath(path.joinpath(*[".."] * levels))


def _versions(versions: Sequence[str]) -> str:
    return f"{'version' if len(versions) == 1 else 'versions'} {listed(sorted(versions, key=int))}"


def _has_versions(folder: Path) -> bool:
    return any(is_version(name) and _is_folder(folder / name) for name in _names(folder))


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  pathlib's raises where it may not look


def _names(folder: Path) -> list[str]:
    """Return the names in a folder that are no clutter; none where it is none, or cannot be read."""
    try:
        return visible_names(folder)
    except OSError:
        return []
