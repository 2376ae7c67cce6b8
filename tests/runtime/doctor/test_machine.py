"""Checks of telecine.doctor.machine, against this machine and against broken ones."""

from __future__ import annotations

import shutil
import subprocess
from collections import namedtuple

import pytest

from telecine.doctor import limits, machine, probes


@pytest.mark.parametrize(
    ("version", "maxsize", "status", "says"),
    [
        ((3, 9, 1), 2**63 - 1, "fail", ""),
        ((3, 12, 1), 2**31 - 1, "fail", "32-bit"),
        ((3, 10, 1), 2**63 - 1, "ok", "1.23 is the last"),
        ((3, 12, 1), 2**63 - 1, "ok", ""),
    ],
)
def test_python(monkeypatch, version, maxsize, status, says, make_machine):
    fake = namedtuple("fake", "version_info maxsize")(version, maxsize)
    monkeypatch.setattr(machine, "sys", fake)
    check = machine.check_python(make_machine())
    assert (check.status, says in check.found) == (status, True)


def test_export_needs_a_newer_python(monkeypatch, make_machine):
    monkeypatch.setattr(machine, "sys", namedtuple("fake", "version_info maxsize")((3, 10, 1), 2**63 - 1))
    check = machine.check_python(make_machine("export"))
    assert (check.status, check.fix) == ("fail", "Use Python 3.11 or newer.")


@pytest.mark.parametrize(
    ("system", "arch", "libc", "status"),
    [
        ("Linux", "aarch64", ("glibc", "2.39"), "ok"),
        ("Linux", "x86_64", ("", ""), "warn"),
        ("Linux", "riscv64", ("glibc", "2.39"), "warn"),
        ("Darwin", "arm64", ("", ""), "warn"),
    ],
)
def test_system(monkeypatch, system, arch, libc, status, make_machine):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: arch)
    monkeypatch.setattr("platform.libc_ver", lambda: libc)
    assert machine.check_system(make_machine()).status == status


DRIVER_C = """
#include <stdlib.h>
#include <string.h>
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuInit(unsigned flags) { if (!getenv("FAKE_CUINIT")) abort(); return atoi(getenv("FAKE_CUINIT")); }
int cuGetErrorName(int code, const char **s) { *s = code == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 7; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA Fake", size); return 0; }
int cuDeviceGetAttribute(int *v, int which, int device) { *v = which == 75 ? device + 1 : 9; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 24ull << 30; return 0; }
"""


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory):
    """A libcuda.so.1 with two GPUs; cuInit returns FAKE_CUINIT, and aborts without it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "cuda.c"
    source.write_text(DRIVER_C)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


@pytest.mark.parametrize(
    ("cuinit", "statuses", "says"),
    [
        ("0", ["ok", "ok", "ok"], "supports CUDA 12.4"),
        ("100", ["warn"], "cuInit: CUDA_ERROR_NO_DEVICE (100) (CUDA_VISIBLE_DEVICES is '')"),
        ("999", ["warn"], "cuInit: error (999)"),
        (None, ["warn"], "killed by SIGABRT"),
    ],
)
def test_drivers(fake_driver, monkeypatch, cuinit, statuses, says, make_machine, assert_actionable):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_driver))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if cuinit is not None:
        monkeypatch.setenv("FAKE_CUINIT", cuinit)
    checks = machine.check_gpu(make_machine(gpu=probes.run_probe("gpu")))
    assert_actionable(checks)
    assert [check.status for check in checks] == statuses
    assert says in checks[0].found
    if cuinit == "0":
        assert [check.found for check in checks[1:]] == [
            "NVIDIA Fake, sm_89, 24.0 GiB",
            "NVIDIA Fake, sm_99, 24.0 GiB",
        ]


@pytest.mark.parametrize(("purpose", "status"), [("runtime", "info"), ("export", "info"), ("build", "warn")])
def test_no_driver(purpose, status, make_machine, assert_actionable):
    (check,) = machine.check_gpu(make_machine(purpose))
    assert (check.status, check.found[:4]) == (status, "none")
    assert_actionable([check])


@pytest.mark.parametrize(
    ("purpose", "free", "status"),
    [("runtime", 4.9, "warn"), ("runtime", 5.1, "ok"), ("export", 39, "warn"), ("export", 41, "ok")],
)
def test_disk(monkeypatch, tmp_path, purpose, free, status, make_machine, assert_actionable):
    usage = namedtuple("usage", "total used free")(0, 0, int(free * machine.GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check = machine.check_disk(make_machine(purpose, path=tmp_path / "bundle"))
    assert (check.status, f"{free:.1f} GiB free" in check.found) == (status, True)
    assert_actionable([check])


def test_a_file_where_the_folder_should_be(tmp_path, make_machine):
    (tmp_path / "file").touch()
    check = machine.check_disk(make_machine(path=tmp_path / "file" / "bundle"))
    assert (check.status, "Not a directory" in check.found) == ("fail", True)


def test_a_deleted_working_directory(monkeypatch, tmp_path, make_machine):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert machine.check_disk(make_machine()).status == "fail"
    assert isinstance(probes.run_probe("imports", "json"), probes.Probe)  # Python itself may refuse to start


@pytest.mark.parametrize(
    ("check", "variable"), [(machine.check_cache, "XDG_CACHE_HOME"), (machine.check_hugging_face, "HF_HOME")]
)
def test_caches(monkeypatch, tmp_path, check, variable, make_machine, assert_actionable):
    (tmp_path / "file").touch()
    for place, status in ((tmp_path / "new", "ok"), (tmp_path / "file", "warn")):
        monkeypatch.setenv(variable, str(place))
        result = check(make_machine("export"))
        result = result[-1] if isinstance(result, list) else result
        assert (result.status, str(place) in result.found) == (status, True)
        assert_actionable([result])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("value", "says"), [("1", "offline"), ("true", "offline"), ("0", "online")])
def test_hugging_face_offline(monkeypatch, value, says, make_machine):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert machine.check_hugging_face(make_machine("export"))[0].found.startswith(says)


@pytest.mark.parametrize(
    ("memory", "status"), [((2 << 30, 8 << 30), "warn"), ((6 << 30, 8 << 30), "ok"), (None, "info")]
)
def test_memory(monkeypatch, memory, status, make_machine, assert_actionable):
    monkeypatch.setattr(limits, "memory_bytes", lambda: memory)
    check = machine.check_memory(make_machine())
    assert check.status == status
    assert_actionable([check])


def test_cores_name_a_lower_quota(monkeypatch, make_machine):
    monkeypatch.setattr(limits, "cpu_quota", lambda: 0.5)
    assert "a cgroup quota allows the time of 0.5" in machine.check_cores(make_machine()).found
