"""telecine.doctor against this machine, and against machines that are broken on purpose.

Faults are real where they can be: packages that crash, hang or are too old lie in a folder on sys.path (which
the probes' processes inherit), and the NVIDIA driver is a small C library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from telecine import doctor
from telecine import doctor_probes as probes
from telecine.doctor import Check
from telecine.errors import RequestError

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
NO_DRIVER = probes.Probe({"driver": None, "error": None, "gpus": [], "done": True})
H200 = {"name": "NVIDIA H200", "sm": "90", "memory": 150_000_000_000}
ONE_GPU = probes.Probe({"driver": "13.0", "error": None, "gpus": [H200], "done": True})


def machine(purpose="runtime", path=None, gpu=NO_DRIVER, minimums=None):
    minimums = doctor._minimums() if minimums is None else minimums
    return doctor.Machine(purpose=purpose, path=path or Path(), gpu=gpu, minimums=minimums)


def assert_actionable(checks):
    assert all(isinstance(check, Check) for check in checks)
    assert all(check.found for check in checks)
    assert all(check.fix for check in checks if check.status in ("warn", "fail"))


def has(*providers):
    """The answer of an ONNX Runtime probe with these providers."""
    names = [f"{name}ExecutionProvider" for name in providers]
    return probes.Probe({"version": "1.31.1", "providers": names, "done": True})


def only(checks, name):
    found = [check for check in checks if check.name == name]
    assert len(found) == 1, doctor.as_text(checks)
    return found[0]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Put packages in front of all others: `packages("av", "raise ...")`, `packages.version("av", "1.0")`."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def module(name, body):
        (folder / f"{name}.py").write_text(body)

    def version(name, number, *requires):
        info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
        info.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}"]
        lines += [f"Requires-Dist: {line}" for line in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")

    module.version = version
    return module


@pytest.fixture
def installed(monkeypatch):
    """Make doctor believe that these distributions, and no others, are installed."""
    def only_these(**versions):
        monkeypatch.setattr(doctor, "_installed", lambda name: versions.get(name.replace("-", "_")))
    return only_these


@pytest.fixture
def answers(monkeypatch):
    """Give these probes' answers in place of running them."""
    def stub(**by_name):
        monkeypatch.setattr(probes, "run_probe", lambda name, *args, timeout_s=None: by_name[name])
    return stub


@pytest.mark.parametrize("purpose", doctor.PURPOSES)
def test_this_machine(purpose, tmp_path):
    checks = doctor.examine(purpose, path=tmp_path / "not" / "there" / "yet")
    assert_actionable(checks)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"Python", "System", "numpy", "Imports", "NVIDIA driver", "Disk", "Memory", "Cache"} <= set(names)
    assert not (tmp_path / "not").exists()
    assert only(checks, "Imports").status == "ok"
    text = doctor.as_text(checks)
    assert len(text.splitlines()) == len(checks) + sum(check.fix is not None for check in checks)


def test_an_unknown_purpose_lists_the_known_ones():
    with pytest.raises(RequestError, match="runtime, export, build"):
        doctor.examine("training")


def test_importing_doctor_is_cheap():
    heavy = "{'numpy', 'click', 'onnxruntime', 'av', 'torch'}"
    code = f"import sys, telecine.doctor; print(*{heavy} & set(sys.modules))"
    root = str(Path(doctor.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": root})
    assert done.stdout.strip() == ""


def test_worst_and_text():
    fine = Check(name="Python", status="ok", found="3.11.7")
    note = Check(name="GPU", status="info", found="none")
    slow = Check(name="Disk", status="warn", found="1 GiB\nfree", fix="Free some space.")
    bad = Check(name="numpy", status="fail", found="not installed", fix="Install it.")
    assert doctor.worst([]) == doctor.worst([fine, note]) == "ok"
    assert doctor.worst([fine, slow]) == "warn"
    assert doctor.worst([bad, slow]) == "fail"
    assert doctor.as_text([fine, slow]) == (
        "ok    Python  3.11.7\nwarn  Disk    1 GiB free\n      Free some space."
    )
    assert doctor.as_text([]) == ""


@pytest.mark.parametrize("status", ["warn", "fail"])
def test_a_fault_without_a_fix_is_a_mistake(status):
    with pytest.raises(AssertionError):
        Check(name="x", status=status, found="y")


# The interpreter and the system.


@pytest.mark.parametrize(
    ("version", "maxsize", "status", "says"),
    [
        ((3, 9, 1), 2**63 - 1, "fail", ""),
        ((3, 12, 1), 2**31 - 1, "fail", "32-bit"),
        ((3, 10, 1), 2**63 - 1, "ok", "onnxruntime-gpu"),
        ((3, 12, 1), 2**63 - 1, "ok", ""),
    ],
)
def test_python(monkeypatch, version, maxsize, status, says):
    fake = namedtuple("fake", "version_info maxsize")(version, maxsize)
    monkeypatch.setattr(doctor, "sys", fake)
    check = doctor.check_python(machine())
    assert (check.status, says in check.found) == (status, True)


@pytest.mark.parametrize(
    ("system", "arch", "libc", "status"),
    [
        ("Linux", "aarch64", ("glibc", "2.39"), "ok"),
        ("Linux", "x86_64", ("", ""), "warn"),
        ("Linux", "riscv64", ("glibc", "2.39"), "warn"),
        ("Darwin", "arm64", ("", ""), "warn"),
    ],
)
def test_system(monkeypatch, system, arch, libc, status):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: arch)
    monkeypatch.setattr("platform.libc_ver", lambda: libc)
    assert doctor.check_system(machine()).status == status


# Packages.


def test_minimums_come_from_the_metadata(packages):
    packages.version(
        "telecine", "9.9", "numpy>=1.26", "onnx_ir>=1.1; extra == 'export'",
        'torch!=3,>=2.13 ; extra == "export"', "tqdm; extra == 'export'",
    )
    assert doctor._minimums() == {
        "": {"numpy": "1.26"}, "export": {"onnx-ir": "1.1", "torch": "2.13", "tqdm": ""},
    }


def test_not_installed_as_a_distribution(monkeypatch, installed):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", missing)
    installed(numpy="0.1", click="8", safetensors="1", tokenizers="1")
    here = machine()
    check = doctor.check_distribution(here)
    assert (check.status, "minimum versions are not checked" in check.found) == ("warn", True)
    assert {check.status for check in doctor.check_packages(here)} == {"ok"}


def test_the_stand_in_table_is_what_pyproject_says():
    tomllib = pytest.importorskip("tomllib")
    file = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, names in doctor.PACKAGES.items():
        wanted = {re.match(r"[\w-]+", line)[0].replace("_", "-") for line in extras[extra]}
        assert set(names) == wanted, extra


def test_missing_and_too_old_packages(installed):
    installed(torch="2.9.1+cpu", numpy="2.0", click="8.1.0")
    minimums = {"": {"numpy": "1.26", "click": "8.1"}, "export": {"torch": "2.13", "diffusers": "0.42.1"}}
    checks = doctor.check_packages(machine("export", minimums=minimums))
    assert_actionable(checks)
    assert [check.status for check in checks] == ["ok", "ok", "fail", "fail"]
    assert only(checks, "torch").found == "2.9.1+cpu, older than 2.13"
    assert '"torch>=2.13"' in only(checks, "torch").fix
    assert 'pip install "telecine[export]"' in only(checks, "diffusers").fix


@pytest.mark.parametrize(
    ("older", "newer"),
    [("2.9.1", "2.13"), ("1.23rc1", "1.24"), ("0.42", "0.42.1"), ("1.9.9+cu130", "2"), ("unknown", "0.1")],
)
def test_versions_compare_as_numbers(older, newer):
    assert doctor._release(older) < doctor._release(newer)
    assert doctor._release("1.23.0") == doctor._release("1.23") == doctor._release("1.23.0+cpu")


def test_an_installed_package_that_does_not_load(packages, installed):
    packages("numpy", "raise ImportError('libblas.so.3: cannot open shared object file')")
    installed(click="8", numpy="2")
    check, = doctor.check_imports(machine(minimums={"": {"click": "", "numpy": ""}}))
    assert check.status == "fail"
    assert "importing numpy: ImportError: libblas.so.3" in check.found
    assert "pip install --force-reinstall numpy" in check.fix


# ONNX Runtime.


def test_both_onnxruntimes(packages):
    packages.version("onnxruntime", "1.31.1")
    packages.version("onnxruntime-gpu", "1.31.0")
    check, = doctor.check_onnxruntime(machine())
    assert check.status == "fail"
    assert "onnxruntime 1.31.1, onnxruntime-gpu 1.31.0" in check.found
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.fix
    assert 'pip install "telecine[onnxruntime]"' in check.fix


@pytest.mark.parametrize(
    ("purpose", "gpu", "extra"),
    [
        ("runtime", NO_DRIVER, "onnxruntime"),
        ("runtime", ONE_GPU, "onnxruntime-gpu"),
        ("export", ONE_GPU, "export"),
    ],
)
def test_no_onnxruntime(installed, monkeypatch, purpose, gpu, extra):
    monkeypatch.setattr(doctor, "sys", namedtuple("fake", "version_info")((3, 12)))
    installed()
    check, = doctor.check_onnxruntime(machine(purpose, gpu=gpu))
    assert (check.status, check.found) == ("fail", "not installed")
    assert f'pip install "telecine[{extra}]"' in check.fix


def test_an_old_onnxruntime_is_not_even_loaded(installed, packages):
    packages("onnxruntime", CRASH)
    installed(onnxruntime_gpu="1.20.1")
    check, = doctor.check_onnxruntime(machine(minimums={"onnxruntime-gpu": {"onnxruntime-gpu": "1.23"}}))
    assert (check.status, check.found) == ("fail", "1.20.1, older than 1.23")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (CRASH, "killed by SIGSEGV"),
        ("raise ImportError('libonnxruntime.so: bad ELF')", "ImportError: libonnxruntime.so: bad ELF"),
        ("", "has no attribute 'InferenceSession'"),   # what uninstalling one of the two leaves
        ("raise SystemExit(0)", "without an answer"),
    ],
)
def test_a_broken_onnxruntime(packages, installed, body, says):
    packages("onnxruntime", body)
    installed(onnxruntime="1.31.1")
    checks = doctor.check_onnxruntime(machine())
    assert_actionable(checks)
    check = only(checks, "ONNX Runtime")
    assert (check.status, says in check.found) == ("fail", True), check.found


@pytest.mark.parametrize(
    ("gpu", "session", "status", "says"),
    [
        (NO_DRIVER, None, "warn", "no NVIDIA GPU"),
        (ONE_GPU, has("CUDA", "CPU"), "ok", "loads on the GPU"),
        (ONE_GPU, has("CPU"), "warn", "fell back"),
        (ONE_GPU, probes.Probe({}, "killed by SIGABRT"), "warn", "SIGABRT"),
    ],
)
def test_cuda_is_listed(installed, answers, gpu, session, status, says):
    installed(onnxruntime_gpu="1.31.1")
    answers(onnxruntime=has("CUDA", "CPU"), onnxruntime_cuda=session)
    checks = doctor.check_onnxruntime(machine(gpu=gpu))
    assert_actionable(checks)
    check = only(checks, "ONNX Runtime CUDA")
    assert (check.status, says in check.found) == (status, True), check.found
    assert len(doctor.check_onnxruntime(machine("export", gpu=gpu))) == len(checks) - 1


def test_a_cpu_build_beside_a_gpu(installed, answers):
    installed(onnxruntime="1.31.1")
    answers(onnxruntime=has("CPU"))
    check = only(doctor.check_onnxruntime(machine(gpu=ONE_GPU)), "ONNX Runtime CUDA")
    assert (check.status, "onnxruntime-gpu" in check.fix) == ("info", True)


# Video.


def test_av_is_missing(installed):
    installed()
    check, = doctor.check_video(machine())
    assert (check.status, check.found) == ("warn", "not installed")
    assert 'pip install "telecine[video]"' in check.fix


def test_av_does_not_import(packages, installed):
    packages("av", "raise ModuleNotFoundError(\"No module named 'av'\")")
    installed(av="18.1.0")
    check = only(doctor.check_video(machine()), "Video")
    assert (check.status, "No module named 'av'" in check.found) == ("warn", True)


def test_av_without_an_encoder(monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr(doctor, "ENCODERS", ("gif", "libno264"))
    check = only(doctor.check_video(machine()), "Video")
    assert (check.status, check.found) == ("warn", "no encoder libno264")


def test_a_probe_that_hangs(packages, installed, monkeypatch):
    packages("av", "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)")
    installed(av="18.1.0")
    monkeypatch.setattr(probes, "PROBE_TIMEOUT_S", 0.5)
    start = time.monotonic()
    check = only(doctor.check_video(machine()), "Video")
    assert (check.status, "no answer within 0.5 s" in check.found) == ("warn", True)
    assert check.fix
    assert time.monotonic() - start < 5


# The GPU.


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
def test_drivers(fake_driver, monkeypatch, cuinit, statuses, says):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_driver))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if cuinit is not None:
        monkeypatch.setenv("FAKE_CUINIT", cuinit)
    checks = doctor.check_gpu(machine(gpu=probes.run_probe("gpu")))
    assert_actionable(checks)
    assert [check.status for check in checks] == statuses
    assert says in checks[0].found
    if cuinit == "0":
        assert [check.found for check in checks[1:]] == [
            "NVIDIA Fake, sm_89, 24.0 GiB", "NVIDIA Fake, sm_99, 24.0 GiB",
        ]


@pytest.mark.parametrize(("purpose", "status"), [("runtime", "info"), ("export", "info"), ("build", "warn")])
def test_no_driver(purpose, status):
    check, = doctor.check_gpu(machine(purpose))
    assert (check.status, check.found[:4]) == (status, "none")
    assert_actionable([check])


def test_tensorrt(packages, installed):
    packages("tensorrt_rtx", "__version__ = '1.7.1'")
    packages("tensorrt_lean", CRASH)
    installed(tensorrt_rtx="1.7.1.116", tensorrt_lean_cu13="11.4.0")
    checks = doctor.check_tensorrt(machine("build"))
    assert_actionable(checks)
    assert [(check.name, check.status, check.found) for check in checks] == [
        ("tensorrt-rtx", "info", "1.7.1.116, loads"),
        ("tensorrt-lean", "warn", "11.4.0 does not load: killed by SIGSEGV"),
    ]


def test_build_says_that_it_cannot_build():
    assert doctor.check_engines in doctor.CHECKS["build"]
    check = doctor.check_engines(machine("build"))
    assert (check.status, "cannot build" in check.found) == ("info", True)


# Disk, memory, cores, caches.


@pytest.mark.parametrize(
    ("purpose", "free", "status"),
    [("runtime", 4.9, "warn"), ("runtime", 5.1, "ok"), ("export", 39, "warn"), ("export", 41, "ok")],
)
def test_disk(monkeypatch, tmp_path, purpose, free, status):
    usage = namedtuple("usage", "total used free")(0, 0, int(free * doctor.GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check = doctor.check_disk(machine(purpose, path=tmp_path / "bundle"))
    assert (check.status, f"{free:.1f} GiB free" in check.found) == (status, True)
    assert_actionable([check])


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    check = doctor.check_disk(machine(path=tmp_path / "file" / "bundle"))
    assert (check.status, "Not a directory" in check.found) == ("fail", True)


def test_a_deleted_working_directory(monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert doctor.check_disk(machine()).status == "fail"
    assert isinstance(probes.run_probe("imports", "json"), probes.Probe)   # Python itself may refuse to start


@pytest.mark.parametrize(
    ("check", "variable"), [(doctor.check_cache, "XDG_CACHE_HOME"), (doctor.check_hugging_face, "HF_HOME")]
)
def test_caches(monkeypatch, tmp_path, check, variable):
    (tmp_path / "file").touch()
    for place, status in ((tmp_path / "new", "ok"), (tmp_path / "file", "warn")):
        monkeypatch.setenv(variable, str(place))
        result = check(machine("export"))
        result = result[-1] if isinstance(result, list) else result
        assert (result.status, str(place) in result.found) == (status, True)
        assert_actionable([result])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("value", "says"), [("1", "offline"), ("true", "offline"), ("0", "online")])
def test_hugging_face_offline(monkeypatch, value, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert doctor.check_hugging_face(machine("export"))[0].found.startswith(says)


def tree(root, **files):
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


MEMINFO = "MemTotal:       33554432 kB\nMemFree:  1 kB\nMemAvailable:   16777216 kB\n"   # 32 GiB, 16 usable


def test_memory_and_cores_without_a_cgroup(tmp_path):
    assert probes.memory_bytes(tmp_path) is None
    assert probes.cpu_quota(tmp_path) is None
    tree(tmp_path, proc__meminfo=MEMINFO)
    assert probes.memory_bytes(tmp_path) == (16 * doctor.GIB, 32 * doctor.GIB)


def test_cgroup_v2(tmp_path):
    tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/pod/box\n")
    group = tmp_path / "sys/fs/cgroup/pod"
    tree(group, **{"memory.max": f"{8 << 30}\n", "memory.current": f"{5 << 30}\n"})
    tree(group, **{"cpu.max": "150000 100000\n", "memory.stat": f"anon 5\ninactive_file {1 << 30}\n"})
    tree(group / "box", **{"memory.max": "max\n", "cpu.max": "max 100000\n"})
    assert probes.memory_bytes(tmp_path) == (4 * doctor.GIB, 8 * doctor.GIB)
    assert probes.cpu_quota(tmp_path) == 1.5


def test_cgroup_v1_seen_from_inside_a_container(tmp_path):
    lines = "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n"
    tree(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=lines)
    group = tmp_path / "sys/fs/cgroup"
    limits = {"memory.limit_in_bytes": str(2 << 30), "memory.usage_in_bytes": str(3 << 30)}
    tree(group / "memory", **limits)
    tree(group / "cpu,cpuacct", **{"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"})
    assert probes.memory_bytes(tmp_path) == (0, 2 * doctor.GIB)
    assert probes.cpu_quota(tmp_path) == 0.5
    tree(group / "cpu,cpuacct", **{"cpu.cfs_quota_us": "-1"})
    tree(group / "memory", **{"memory.limit_in_bytes": "9223372036854771712"})
    assert probes.memory_bytes(tmp_path) == (16 * doctor.GIB, 32 * doctor.GIB)
    assert probes.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("memory", "status"), [((2 << 30, 8 << 30), "warn"), ((6 << 30, 8 << 30), "ok"), (None, "info")]
)
def test_memory(monkeypatch, memory, status):
    monkeypatch.setattr(probes, "memory_bytes", lambda: memory)
    check = doctor.check_memory(machine())
    assert check.status == status
    assert_actionable([check])


def test_cores_name_a_lower_quota(monkeypatch):
    monkeypatch.setattr(probes, "cpu_quota", lambda: 0.5)
    assert "a cgroup quota allows the time of 0.5" in doctor.check_cores(machine()).found


# Probes.


def test_a_probe_imports_what_this_process_would(packages, tmp_path, monkeypatch):
    packages("av", "__version__ = '7'; print('noise')")
    (tmp_path / "av.py").write_text("raise ImportError('packages do not come from here')")
    monkeypatch.chdir(tmp_path)
    assert probes.run_probe("imports", "av").answer["loaded"] == {"av": "7"}


def test_what_a_probe_said_before_it_crashed_counts(packages):
    packages("fine", "")
    packages("bad", CRASH)
    probe = probes.run_probe("imports", "fine", "bad")
    assert probe.problem == "killed by SIGSEGV"
    assert probe.answer["loaded"] == {"fine": ""}


def test_a_probe_without_an_interpreter(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "could not start" in probes.run_probe("gpu").problem
    monkeypatch.setattr(sys, "executable", "")
    assert "no Python executable" in probes.run_probe("gpu").problem
