"""How a long operation tells whoever started it where it stands."""

from collections.abc import Callable
from dataclasses import dataclass, replace


def _ignore(*_: object) -> None:
    """Take any report and do nothing with it."""


@dataclass(frozen=True)
class Progress:
    """Callbacks of an export or a verification; by default nobody listens."""

    stage: Callable[[str], None] = _ignore
    """Called with a few words when a new stage begins, such as "exporting"."""
    downloaded: Callable[[int, int | None], None] = _ignore
    """Called with the bytes so far and the total, None where the host does not say it."""
    warning: Callable[[str], None] = _ignore
    """Called with one line that the user must see though the work goes on."""
    note: Callable[[str], None] = _ignore
    """Called with one line about what was decided."""

    def about(self, name: str) -> "Progress":
        """Return the same with the name of a model before every warning and note."""
        return replace(
            self,
            warning=lambda text: self.warning(f"{name}: {text}"),
            note=lambda text: self.note(f"{name}: {text}"),
        )


SILENT = Progress()
"""For callers that want no reports."""
