"""telecine.doctor.probes: what a child process says before it dies still counts."""

from __future__ import annotations

import sys

from telecine.doctor import probes

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def test_a_probe_imports_what_this_process_would(site, tmp_path, monkeypatch):
    site("av", "__version__ = '7'; print('noise')")
    (tmp_path / "av.py").write_text("raise ImportError('packages do not come from here')")
    monkeypatch.chdir(tmp_path)
    assert probes.run_probe("imports", "av").answer["loaded"] == {"av": "7"}


def test_what_a_probe_said_before_it_crashed_counts(site):
    site("fine", "")
    site("bad", CRASH)
    probe = probes.run_probe("imports", "fine", "bad")
    assert probe.problem == "killed by SIGSEGV"
    assert probe.answer["loaded"] == {"fine": ""}


FAKE_ONNXRUNTIME = """
found = []
class InferenceSession:
    def __init__(self, model, providers): self.providers = providers
    def get_providers(self): return self.providers if found else ["CPUExecutionProvider"]
def preload_dlls(): found.append("libcudart")
"""


def test_the_cuda_probe_loads_a_session_as_the_backend_does(site):
    site("onnxruntime", FAKE_ONNXRUNTIME)
    probe = probes.run_probe("onnxruntime_cuda")
    assert (probe.problem, probe.answer["providers"][0]) == (None, "CUDAExecutionProvider")


def test_a_probe_without_an_interpreter(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "could not start" in probes.run_probe("gpu").problem
    monkeypatch.setattr(sys, "executable", "")
    assert "no Python executable" in probes.run_probe("gpu").problem
