"""The CPU budget follows the cgroup quota, which ONNX Runtime does not look at."""

import os

import pytest

from vistazo_server.engine import cpu


def files(root, **contents):
    for path, content in contents.items():
        file = root / path.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def test_the_budget_is_at_most_the_affinity():
    assert 1 <= cpu.cpu_budget() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 1 << 20), ("150000 100000", 1.5), ("50000 100000", 0.5), ("nonsense", 1 << 20)],
)
def test_a_version_2_quota_is_the_limit_over_the_period(tmp_path, limit, expected):
    files(tmp_path, proc="0::/\n", cpuDOTmax=limit)

    assert cpu._cgroup_quota(tmp_path, tmp_path / "proc") == expected


def test_the_tightest_of_the_enclosing_groups_counts(tmp_path):
    files(
        tmp_path,
        proc="0::/pod/container\n",
        pod__cpuDOTmax="200000 100000",
        pod__container__cpuDOTmax="400000 100000",
    )

    assert cpu._cgroup_quota(tmp_path, tmp_path / "proc") == 2.0


def test_a_path_that_only_exists_on_the_host_falls_back_to_the_containers_own_root(tmp_path):
    files(tmp_path, proc="0::/kubepods/pod1/abc\n", cpuDOTmax="300000 100000")

    assert cpu._cgroup_quota(tmp_path, tmp_path / "proc") == 3.0


def test_a_version_1_quota_is_read_too(tmp_path):
    files(
        tmp_path,
        proc="4:memory:/x\n3:cpu,cpuacct:/x\n",
        cpu__x__cpuDOTcfs_quota_us="250000",
        cpu__x__cpuDOTcfs_period_us="100000",
        cpu__cpuDOTcfs_quota_us="-1",
        cpu__cpuDOTcfs_period_us="100000",
    )

    assert cpu._cgroup_quota(tmp_path, tmp_path / "proc") == 2.5


def test_without_cgroups_there_is_no_quota(tmp_path):
    assert cpu._cgroup_quota(tmp_path, tmp_path / "missing") == 1 << 20
