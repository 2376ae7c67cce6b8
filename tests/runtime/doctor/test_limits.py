"""telecine.doctor.limits, on /proc and cgroup trees of other machines."""

from __future__ import annotations

from telecine.doctor import limits

GIB = 1024**3


def tree(root, **files):
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


MEMINFO = "MemTotal:       33554432 kB\nMemFree:  1 kB\nMemAvailable:   16777216 kB\n"  # 32 GiB, 16 usable


def test_memory_and_cores_without_a_cgroup(tmp_path):
    assert limits.memory_bytes(tmp_path) is None
    assert limits.cpu_quota(tmp_path) is None
    tree(tmp_path, proc__meminfo=MEMINFO)
    assert limits.memory_bytes(tmp_path) == (16 * GIB, 32 * GIB)


def test_cgroup_v2(tmp_path):
    tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/pod/box\n")
    group = tmp_path / "sys/fs/cgroup/pod"
    tree(group, **{"memory.max": f"{8 << 30}\n", "memory.current": f"{5 << 30}\n"})
    tree(group, **{"cpu.max": "150000 100000\n", "memory.stat": f"anon 5\ninactive_file {1 << 30}\n"})
    tree(group / "box", **{"memory.max": "max\n", "cpu.max": "max 100000\n"})
    assert limits.memory_bytes(tmp_path) == (4 * GIB, 8 * GIB)
    assert limits.cpu_quota(tmp_path) == 1.5


def test_cgroup_v1_seen_from_inside_a_container(tmp_path):
    lines = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n"
    tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=lines)
    group = tmp_path / "sys/fs/cgroup"
    files = {"memory.limit_in_bytes": str(2 << 30), "memory.usage_in_bytes": str(3 << 30)}
    tree(group / "memory", **files)
    tree(group / "cpu,cpuacct", **{"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"})
    assert limits.memory_bytes(tmp_path) == (0, 2 * GIB)
    assert limits.cpu_quota(tmp_path) == 0.5
    tree(group / "cpu,cpuacct", **{"cpu.cfs_quota_us": "-1"})
    tree(group / "memory", **{"memory.limit_in_bytes": "9223372036854771712"})
    assert limits.memory_bytes(tmp_path) == (16 * GIB, 32 * GIB)
    assert limits.cpu_quota(tmp_path) is None
