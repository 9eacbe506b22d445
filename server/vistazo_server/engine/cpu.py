"""How many CPUs this process may really use, which is not how many the host has."""

import math
import os
from pathlib import Path

from vistazo_server.engine import cgroup


def cpu_budget() -> int:
    """Return the CPUs that threads should be sized to, at least 1.

    The smaller of the scheduler affinity and the cgroup quota, rounded up. ONNX Runtime sizes its pool to
    the host alone (microsoft/onnxruntime#29510), and inside a container that oversubscribes the quota.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(affinity, math.ceil(_cgroup_quota(cgroup.ROOT, cgroup.MEMBERSHIP))))


def _cgroup_quota(root: Path, proc_cgroup: Path) -> float:
    """Return the CPUs that the tightest enclosing cgroup allows; infinity (as a large number) if none."""
    unlimited = float(1 << 20)
    readers = {1: _read_v1, 2: _read_v2}
    found = (readers[version](folder) for folder, version in cgroup.enclosing("cpu", root, proc_cgroup))
    return min((quota or unlimited for quota in found), default=unlimited)


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
