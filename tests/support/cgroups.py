"""A control group with a memory limit, for processes of a test."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

ROOT = Path("/sys/fs/cgroup")
# By version, where groups are, and the file of the limit.
PLACES = ((ROOT / "memory", "memory.limit_in_bytes"), (ROOT, "memory.max"))


@contextmanager
def memory_group(limit: int) -> Iterator[Path | None]:
    """Give the folder of a new group whose processes may use `limit` bytes together; None: none can be made.

    A process joins it by writing its number into `cgroup.procs` there. All have to be gone at the end.
    """
    group = _make(limit)
    try:
        yield group
    finally:
        if group is not None:
            _remove(group)


def _make(limit: int) -> Path | None:
    for place, file in PLACES:
        group = place / f"vistazo-test-{uuid4().hex[:8]}"
        with suppress(OSError):
            if place.joinpath("cgroup.procs").exists():
                group.mkdir()
                try:
                    # Version 2 has none where the controller is not handed on, and nobody can make one.
                    (group / file).write_text(str(limit))
                except OSError:
                    group.rmdir()
                    raise
                return group
    return None


def _remove(group: Path) -> None:
    # The kernel takes a moment to forget the last of a group's processes.
    for _ in range(100):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{group} still has processes")
