"""Where the limits of this process's control groups are written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")


def enclosing(controller: str, root: Path, membership: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of the groups that this process is in, and the version of their files: 1 or 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, version = root, 2
        elif controller in controllers.split(","):
            base, version = root / controller, 1
        else:
            continue
        # Inside a container the path may be the host's and not exist here; its root then has the limit.
        folder = base / path.lstrip("/")
        yield folder, version
        while folder != base:
            folder = folder.parent
            yield folder, version
