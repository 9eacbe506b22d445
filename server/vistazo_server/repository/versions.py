"""VersionPolicy: which versions of a model are served."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeVar

Found = TypeVar("Found")

_EXPECTED: Final = "expected latest:N with N of at least 1, all, or versions such as 1,3"

MOST_VERSION: Final = (1 << 63) - 1
"""Open Inference has versions as int64."""


def is_version(name: str) -> bool:
    """Return whether a folder of this name is a model's version: a decimal number from 1 to MOST_VERSION."""
    # isdecimal also takes other scripts' digits; a leading zero would name another folder.
    is_number = name.isascii() and name.isdecimal() and name[0] != "0"
    return is_number and len(name) <= len(str(MOST_VERSION)) and int(name) <= MOST_VERSION


def newest_first(versions: Collection[str]) -> list[str]:
    """Return version numbers, the highest first."""
    return sorted(versions, key=int, reverse=True)


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """The highest few, all, or those listed."""

    latest: int = 0
    """How many, the highest first. 0: all, or those listed."""
    listed: tuple[str, ...] = ()
    """Empty: not by a list."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the policy that `text` says: `latest:N`, `all`, or `1,3`. Raises ValueError."""
        if text == "all":
            return cls()
        kind, colon, count = text.partition(":")
        if colon:
            if kind != "latest" or not is_version(count):
                raise ValueError(f"{_EXPECTED}, got {text!r}")
            return cls(latest=int(count))
        listed = tuple(version.strip() for version in text.split(","))
        if not all(is_version(version) for version in listed):
            raise ValueError(f"{_EXPECTED}, got {text!r}")
        return cls(listed=tuple(newest_first(set(listed))))

    def choose(self, found: Collection[str]) -> list[str]:
        """Return which of the versions that were found are to be served, the highest first."""
        if self.listed:
            return [version for version in self.listed if version in found]
        versions = newest_first(found)
        return versions[: self.latest] if self.latest else versions

    def among(self, found: Mapping[str, Found]) -> dict[str, Found]:
        """Return of the versions that were found those that may be served in any case."""
        return {version: what for version, what in found.items() if not self.listed or version in self.listed}

    def lower(self, found: Collection[str]) -> list[str]:
        """Return which of the others that were found may serve in the place of those, the highest first.

        Only with latest:N: where versions are listed, no other is ever served.
        """
        return newest_first(found)[self.latest :] if self.latest else []

    def missing(self, found: Collection[str]) -> list[str]:
        """Return the versions that are listed and were not found, the highest first."""
        return [version for version in self.listed if version not in found]
