"""How much memory this process holds."""

from pathlib import Path


def resident_mb() -> float:
    """Return the resident set of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
