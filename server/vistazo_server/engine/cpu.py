"""How many CPUs this process may really use, which is not how many the host has."""

import math
import os
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC_CGROUP = Path("/proc/self/cgroup")


def cpu_budget() -> int:
    """Return the CPUs that threads should be sized to, at least 1.

    The smaller of the scheduler affinity and the cgroup quota, rounded up. ONNX Runtime sizes its pool to
    the host alone (microsoft/onnxruntime#29510), and inside a container that oversubscribes the quota.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(affinity, math.ceil(_cgroup_quota(_CGROUP_ROOT, _PROC_CGROUP))))


def _cgroup_quota(root: Path, proc_cgroup: Path) -> float:
    """Return the CPUs that the tightest enclosing cgroup allows; infinity (as a large number) if none."""
    unlimited = float(1 << 20)
    try:
        memberships = proc_cgroup.read_text().splitlines()
    except OSError:
        return unlimited
    quota = unlimited
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":
            base, read = root, _read_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _read_v1
        else:
            continue
        # Inside a container the path may be the host's and not exist here; its root then has the limit.
        folder = base / path.lstrip("/")
        while True:
            quota = min(quota, read(folder) or unlimited)
            if folder == base:
                break
            folder = folder.parent
    return quota


def _read_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _read_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return None if limit <= 0 else limit / period
    except (OSError, ValueError):
        return None
