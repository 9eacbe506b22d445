"""What the benchmark ran on, and what the kernel says about a process."""

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("vistazo", "grpcio", "protobuf", "numpy", "onnxruntime", "onnxruntime-gpu", "pillow", "uvloop")


def cpu_budget() -> int:
    """Return how many CPUs this process may use, at least 1: affinity, or the cgroup v2 quota if smaller.

    Threads of the raw engine are sized to it, as the server sizes its own.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(affinity, math.ceil(_cgroup_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")))))


def _cgroup_quota(root: Path, proc_cgroup: Path) -> float:
    """Return the CPUs that the tightest enclosing v2 cgroup allows; a large number where none does."""
    quota = float(1 << 20)
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        return quota
    for line in lines:
        if not line.startswith("0::"):
            continue
        folder = root / line[3:].lstrip("/")
        for group in (folder, *folder.parents):
            try:
                limit, period = (group / "cpu.max").read_text().split()
            except (OSError, ValueError):
                continue
            if limit != "max":
                quota = min(quota, int(limit) / int(period))
    return quota


def describe_machine() -> dict[str, object]:
    """Return what a reader needs to place the figures: cores, CPU, system, load, package versions."""
    return {
        "cores": cpu_budget(),
        "host_cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_mb": _memory_mb(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": _versions(),
    }


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process. Raises OSError when it is gone or there is no /proc."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no VmRSS")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, user and system. Raises OSError as `resident_bytes` does."""
    # The second field is the command in parentheses and may hold spaces; utime and stime are 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class CpuWatch:
    """How much of this machine's CPU other processes took since it was made: what spoils a figure.

    Ours are this process and its descendants that are alive. None where there is no /proc.
    """

    def __init__(self) -> None:
        self._before = _cpu_times()

    def elsewhere_share(self) -> float | None:
        """Return CPU time that was spent elsewhere, over all CPU time that there was: 0 to 1."""
        after = _cpu_times()
        if self._before is None or after is None:
            return None
        total, busy, ours = (now - then for now, then in zip(after, self._before, strict=True))
        return min(max((busy - ours) / total, 0.0), 1.0) if total > 0 else None


def _cpu_times() -> tuple[float, float, float] | None:
    """Return ticks so far: of all CPUs, of those the busy (stolen included), and of our processes alive."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    parents: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    ours, found = {os.getpid()}, 1
    while found:
        new = {pid for pid, (parent, _) in parents.items() if parent in ours and pid not in ours}
        ours |= new
        found = len(new)
    # user nice system idle iowait irq softirq steal
    return (
        sum(ticks),
        sum(ticks) - ticks[3] - ticks[4],
        sum(parents[pid][1] for pid in ours if pid in parents),
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (ValueError, OSError):
        return None
