"""The script that checks every path on a GPU, as far as a machine without one can show it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_check
import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.plans import write_plan
from gpu_checks import tasks
from gpu_checks.facts import CUDA_BINDINGS, ONNXRUNTIME, ONNXRUNTIME_TENSORRT, RTX, TENSORRT, TORCH, Facts
from gpu_checks.jobs import Job, Outcome
from gpu_checks.plan import GIB, MODELS, PRECISIONS, ROUTES, Asked, plan, select
from gpu_checks.report import as_json, as_text, checked
from gpu_checks.runner import run_job, run_jobs

from telecine.bench.settings import Settings
from telecine.bundle import Bundle

ALL = dict.fromkeys((CUDA_BINDINGS, ONNXRUNTIME, ONNXRUNTIME_TENSORRT, RTX, TENSORRT, TORCH), "1.0")
H200 = Facts(gpu="H200", capability=90, gpu_memory=141 * GIB, memory=128 * GIB, works=ALL, broken={})
NONE = Facts(gpu=None, capability=0, gpu_memory=0, memory=8 * GIB, works={}, broken=dict.fromkeys(ALL, "no driver"))
DISK = 500 * GIB
SMALL = {
    "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2, "seed": 0,
    "decode_timestep": 0.05, "decode_noise_scale": 0.025,
}  # fmt: skip
SETTINGS = {
    "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 3, "repeats": 1, "warmups": 1, "threads": 1,
    "device": "cuda",
}  # fmt: skip


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return plan(Asked(work=tmp_path), capability=90)


def ran(jobs: Sequence[Job], facts: Facts, disk: int = DISK) -> set[str]:
    return {job.name for job in jobs if job.lacks(facts, disk) is None}


class TestPlan:
    def test_every_path_of_every_model_is_checked_and_measured(self, jobs: list[Job]) -> None:
        names = [job.name for job in jobs]
        assert len(set(names)) == len(names)
        for model in MODELS:
            for route in ROUTES:
                assert f"{model}: {route.name}" in names
        sizes = ("demo 96x96x17", "real-size 768x512x121", "real-size 1216x704x121")
        for size in sizes:
            for competitor in ("diffusers eager fp16", "torch.compile bf16", "onnxruntime bf16", "tensorrt fp8"):
                assert [f"{size}: {competitor}, round {turn}" in names for turn in (1, 2, 3)] == [True] * 3
        assert {job.arguments["settings"]["device"] for job in jobs if job.kind == "speed"} == {"cuda"}

    def test_what_a_job_needs_comes_before_it(self, jobs: list[Job]) -> None:
        seen: set[str] = set()
        for job in jobs:
            assert set(job.after) <= seen, job
            seen.add(job.name)
            assert job.task in tasks.TASKS

    def test_rounds_are_interleaved(self, jobs: list[Job]) -> None:
        turns = [job.name.split(", round ") for job in jobs if job.name.startswith("demo 96x96x17")]
        first = [name for name, turn in turns if turn == "1"]
        assert turns == [[name, turn] for turn in "123" for name in first]

    def test_arguments_are_json_and_parameters_of_the_task(self, jobs: list[Job]) -> None:
        import inspect

        for job in jobs:
            given = set(json.loads(json.dumps(job.arguments))) | ({"started"} if job.kind == "speed" else set())
            assert given == set(inspect.signature(tasks.TASKS[job.task]).parameters), job.name

    def test_only_some_and_what_they_need(self, jobs: list[Job]) -> None:
        chosen = [job.name for job in select(jobs, ["demo: tensorrt fp16"])]
        assert chosen == [
            "demo: export fp32", "demo: export fp16", "demo: reference on the CPU", "demo: build tensorrt fp16",
            "demo: tensorrt fp16", "demo: tensorrt fp16, CUDA graphs",
        ]  # fmt: skip
        assert select(jobs, []) == jobs


class TestWhatIsSkipped:
    def test_everything_without_a_gpu(self, jobs: list[Job]) -> None:
        assert {job.lacks(NONE, DISK) for job in jobs} == {"no driver"}

    def test_a_gpu_that_rtx_does_not_know(self, jobs: list[Job]) -> None:
        """It builds for no compute capability 9.0: all else runs."""
        skipped = {job.name for job in jobs} - ran(jobs, H200)
        assert skipped == {job.name for job in jobs if "tensorrt_rtx" in job.name}
        (job,) = (job for job in jobs if job.name == "demo: tensorrt_rtx fp16")
        assert job.lacks(H200, DISK) == "the GPU is sm90, not sm75, sm80, sm86, sm89, sm120, sm121"

    @pytest.mark.parametrize(("capability", "refused"), [(80, {"fp8"}), (75, {"fp8", "bf16"})])
    def test_precisions_that_a_gpu_lacks(self, jobs: list[Job], capability: int, refused: set[str]) -> None:
        done = ran(jobs, dataclasses.replace(H200, capability=capability))
        for precision in PRECISIONS:
            assert (f"demo: tensorrt {precision}" in done) == (precision not in refused)

    @pytest.mark.parametrize(
        ("library", "names"),
        [(TORCH, ("diffusers", "torch.compile")), (ONNXRUNTIME, (": onnxruntime",)), (TENSORRT, (" tensorrt ",))],
    )
    def test_what_lacks_its_library(self, jobs: list[Job], library: str, names: tuple[str, ...]) -> None:
        works = {name: version for name, version in ALL.items() if name != library}
        ada = dataclasses.replace(H200, capability=89, works=works, broken={library: "not installed"})
        for job in jobs:
            other = ", TensorRT provider" in job.name
            expected = any(name in job.name for name in names) and not other
            if not other:
                assert (job.lacks(ada, DISK) == f"{library} does not work here: not installed") == expected, job.name

    def test_memory_and_disk(self, jobs: list[Job]) -> None:
        small = dataclasses.replace(H200, gpu_memory=24 * GIB, memory=12 * GIB)
        by_name = {job.name: job for job in jobs}
        told = by_name["real-size 1216x704x121: diffusers eager fp16, round 1"].lacks(small, DISK)
        assert told == "34.4 GB of GPU memory are needed, there are 25.8 GB"
        assert by_name["real-size 768x512x121: diffusers eager fp16, round 1"].lacks(small, DISK) is None
        assert "of free memory" in str(by_name["real-size: reference on the CPU"].lacks(small, DISK))
        assert "of free disk" in str(by_name["real-size: export fp32"].lacks(H200, GIB))


# A script with the protocol of gpu_check.py.
WORKER = """
import json, os, signal, sys, time
task, answer = sys.argv[2], sys.argv[6]
arguments = json.loads(sys.argv[4])
print("about to", task, flush=True)
if task == "crash": os.kill(os.getpid(), signal.SIGSEGV)
if task == "hang":
    import subprocess
    child = subprocess.Popen(["sleep", "60"])
    open(answer + ".child", "w").write(str(child.pid))
    time.sleep(60)
if task == "raise": raise ValueError("no such thing")
if task == "silent": sys.exit()
open(answer, "w").write(json.dumps({"status": arguments["status"], "detail": "told", "figures": {"a": 1}}))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "worker.py").write_text(WORKER)
    return [sys.executable, str(tmp_path / "worker.py")]


def job(name: str, task: str = "do", status: str = "PASS", limit: float = 30.0, **fields: Any) -> Job:
    return Job(name=name, kind="check", task=task, arguments={"status": status}, limit=limit, **fields)


class TestProcesses:
    def test_an_answer(self, tmp_path: Path, command: list[str]) -> None:
        outcome = run_job(job("a: b/c"), tmp_path, command)
        assert (outcome.status, outcome.detail, outcome.figures) == ("PASS", "told", {"a": 1})
        assert (tmp_path / "jobs" / "a--b-c" / "log.txt").read_text() == "about to do\n"

    @pytest.mark.parametrize(
        ("task", "detail"),
        [
            ("crash", "killed by SIGSEGV: about to crash ("),
            ("raise", "exit status 1: ValueError: no such thing ("),
            ("silent", "it ended without an answer: about to silent ("),
        ],
    )
    def test_what_breaks_is_told(self, tmp_path: Path, command: list[str], task: str, detail: str) -> None:
        run_job(job("a"), tmp_path, command)  # its answer is not taken for the next one's
        outcome = run_job(job("a", task), tmp_path, command)
        assert outcome.status == "FAIL"
        assert outcome.detail.startswith(detail)

    def test_what_hangs_ends_with_all_that_it_started(self, tmp_path: Path, command: list[str]) -> None:
        outcome = run_job(job("a", "hang", limit=2.0), tmp_path, command)
        assert outcome.status == "FAIL"
        assert outcome.detail.startswith("not done within 2 s: about to hang")
        child = int((tmp_path / "jobs" / "a" / "answer.json.child").read_text())
        for _ in range(100):
            if not alive(child):
                return
            time.sleep(0.05)
        pytest.fail("its child lives on")

    def test_others_go_on_and_what_needs_it_does_not(self, tmp_path: Path, command: list[str]) -> None:
        jobs = [
            job("crashes", "crash"), job("fails", status="FAIL"), job("stands"),
            job("after a crash", after=("crashes",)), job("after that", after=("after a crash",)),
            job("after both", after=("stands", "fails")), job("on", after=("stands",)), job("alone", after=("nobody",)),
        ]  # fmt: skip
        told: list[int] = []
        outcomes = run_jobs(jobs, H200, tmp_path, command=command, told=lambda each: told.append(len(each)))
        assert [outcome.status for outcome in outcomes] == [
            "FAIL", "FAIL", "PASS", "SKIP", "SKIP", "SKIP", "PASS", "SKIP",
        ]  # fmt: skip
        assert [outcome.detail for outcome in outcomes if outcome.status == "SKIP"] == [
            "crashes: FAIL", "after a crash: SKIP", "fails: FAIL", "nobody was not asked for",
        ]  # fmt: skip
        assert told == list(range(1, 9))


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class TestTasksOnDoubles:
    """The same checks and measurements, where ONNX Runtime's CPU provider stands in for a GPU."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "check_request", lambda model: SMALL)

    @pytest.fixture
    def reference(self, tiny_bundle: Path, tmp_path: Path) -> str:
        path = str(tmp_path / "reference.npz")
        assert tasks.reference("demo", str(tiny_bundle), path).status == "PASS"
        return path

    @pytest.mark.parametrize(
        ("name", "passes"),
        [("onnxruntime fp32", True), ("onnxruntime fp16, CUDA graphs", True), ("tensorrt fp32", True)],
    )
    def test_a_path_that_is_right(
        self, name: str, passes: bool, reference: str, tiny_bundle: Path, tmp_path: Path,
        tensorrt: Callable[..., Any], onnxruntime_gpu: Callable[..., Any],
    ) -> None:  # fmt: skip
        tensorrt()
        onnxruntime_gpu()
        route = self.route(name)
        engines = self.engines(tiny_bundle, tmp_path) if name.startswith("tensorrt") else None
        answer = tasks.check("demo", reference, route, str(tiny_bundle), engines)
        assert answer.status == "PASS", answer.detail
        assert answer.figures["max_abs"] < 1e-4

    def test_a_path_that_is_wrong(
        self, reference: str, plain_bundle: Path, onnxruntime_gpu: Callable[..., Any]
    ) -> None:
        """Another model's frames, in the reference's shape."""
        onnxruntime_gpu()
        for name in ("onnxruntime fp32", "onnxruntime bf16"):
            answer = tasks.check("demo", reference, self.route(name), str(plain_bundle), None)
            assert answer.status == "FAIL", answer.detail
            assert "tolerance: " in answer.detail

    @pytest.mark.parametrize("name", ["onnxruntime fp16", "tensorrt fp16"])
    def test_speed(
        self, name: str, tiny_bundle: Path, tmp_path: Path, gpu: CudaDouble, tensorrt: Callable[..., Any],
        onnxruntime_gpu: Callable[..., Any],
    ) -> None:  # fmt: skip
        tensorrt()
        onnxruntime_gpu()
        engines = self.engines(tiny_bundle, tmp_path) if name.startswith("tensorrt") else None
        gpu.elapsed = 50.0
        start = time.monotonic()
        answer = tasks.speed("demo", SETTINGS, self.route(name), str(tiny_bundle), engines, start)
        told = answer.figures
        assert told["calls_per_step"] == 1  # both passes at once
        assert told["back_to_back"]["median"] == pytest.approx(0.005)
        assert 0 < told["stages"]["step"]["median"] < told["start_up"] < time.monotonic() - start
        assert told["peak_device_memory"] > 4096
        assert len(told["stages"]["step"]["samples"]) == 2
        assert json.loads(json.dumps(told))

    @staticmethod
    def route(name: str) -> dict[str, Any]:
        return dataclasses.asdict(next(route for route in ROUTES if route.name == name))

    @staticmethod
    def engines(bundle: Path, folder: Path) -> str:
        opened = Bundle.open(bundle)
        for component in ("text_encoder", "transformer", "vae_decoder"):
            write_plan(opened, component, engines=folder / "engines")
        return str(folder / "engines")


@pytest.mark.slow
def test_random_weights_are_the_same_on_both_sides(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real-size path, on small networks: bundle, embeddings in place of texts, reference, diffusers beside it."""
    import build_real_size
    import real_sizes
    from gpu_checks import models

    from telecine_export.bench.competitor import Diffusers

    names = {"transformer": "transformer 2B", "vae_decoder": "vae_decoder 0.9.5"}
    for component, folder in (("transformer", "transformer"), ("vae_decoder", "vae")):
        settings = json.loads((tiny_source / folder / "config.json").read_text())
        small = dataclasses.replace(real_sizes.NETWORKS[names[component]], settings=settings)
        monkeypatch.setitem(build_real_size.CHOICES, component, small)  # type: ignore[arg-type]
        monkeypatch.setitem(real_sizes.NETWORKS, names[component], small)  # type: ignore[arg-type]
        if component == "transformer":
            monkeypatch.setattr(models, "TEXT", (1, 128, settings["caption_channels"]))
    bundle = models.export_real_size(str(tmp_path), "fp32")
    tasks.reference("real-size", bundle, str(tmp_path / "reference.npz"))
    with np.load(tmp_path / "reference.npz") as kept:
        ours = kept["frames"]

    pipe = models.diffusers_pipeline("real-size", "fp32")
    frames: list[np.ndarray] = []
    call = type(pipe).__call__
    monkeypatch.setattr(type(pipe), "__call__", lambda *a, **k: frames.append(call(*a, **k).frames))
    request = models.check_request("real-size")
    names_of_settings = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
    asked = Settings(**{name: request[name] for name in names_of_settings}, threads=1)
    diffusers = Diffusers(pipe, threads=1, prompts=models.diffusers_prompts("real-size", "fp32", "cpu"))
    stages = diffusers.generate(asked, lambda: None)
    assert set(stages) == {"text", "denoise", "network", "decode"}
    np.testing.assert_allclose(ours, frames[0], rtol=0, atol=1e-4)
    assert frames[0].std() > 1e-3


@pytest.mark.parametrize(
    ("precision", "trained", "error", "status"),
    [
        ("fp32", True, 1e-5, "PASS"),
        ("fp32", True, 1e-4, "FAIL"),  # 2e-5 on average
        ("fp16", True, 0.01, "PASS"),
        ("fp16", True, 0.02, "FAIL"),
        ("fp8", True, 0.05, "PASS"),
        ("fp8", False, 0.05, "PASS"),
        ("fp16", False, 0.2, "FAIL"),
        ("bf16", True, float("nan"), "FAIL"),
    ],
)
def test_tolerances(precision: str, trained: bool, error: float, status: str) -> None:
    random = np.random.default_rng(0)
    wanted = random.random((1, 4, 32, 32, 3), np.float32)
    frames = wanted + np.float32(error) * random.choice([-1, 1], wanted.shape).astype(np.float32)
    answer = tasks.judge(frames, wanted, precision=precision, trained=trained)
    assert answer.status == status, answer.detail
    assert "NaN" not in json.dumps(dict(answer.figures))


def spread(*samples: float) -> dict[str, Any]:
    return {"median": samples[len(samples) // 2], "low": 0, "high": 0, "samples": samples}


def measured(name: str, turn: int, step: float, **figures: Any) -> Outcome:
    stages = {stage: spread(step, step) for stage in ("step", "step_network", "step_host", "text", "decode", "total")}
    told = {"stages": stages, "start_up": 2.0, "peak_device_memory": 10**9, "peak_memory": 2 * 10**9, "versions": {}}
    return Outcome(job=f"demo 96x96x17: {name}, round {turn}", kind="speed", status="PASS", figures=told | figures)


def test_the_table_and_the_file() -> None:
    back = {"back_to_back": spread(0.01), "calls_per_step": 2.0, "versions": {"onnxruntime-gpu": "1.31"}}
    outcomes = [
        Outcome(job="demo: onnxruntime fp16", kind="check", status="PASS", detail="PSNR 50 dB"),
        measured("diffusers eager fp16", 1, 0.06, start_up=None, peak_memory=None),
        measured("diffusers eager fp16", 2, 0.08, start_up=None, peak_memory=None),
        measured("torch.compile fp16", 1, 0.04),
        measured("onnxruntime fp16, CUDA graphs", 1, 0.020, **back),
        measured("onnxruntime fp16, CUDA graphs", 2, 0.022, **back),
    ]
    (rows,) = as_json(H200, outcomes, {"rounds": 2})["speed"].values()
    ours = rows[-1]
    assert ours["stages"]["step"]["samples"] == (0.02, 0.02, 0.022, 0.022)
    assert ours["stages"]["step"]["median"] == pytest.approx(0.021)
    assert ours["loop_to_network"] == pytest.approx(1.05)
    assert ours["times_as_fast_as"] == {
        "diffusers eager": pytest.approx(0.07 / 0.021), "torch.compile": pytest.approx(0.04 / 0.021),
    }  # fmt: skip
    text = as_text(H200, outcomes)
    assert "| onnxruntime fp16, CUDA graphs | 21.0 (20.0-22.0) | 20.0 | 1.050 | 3.33 | 1.90 |" in text
    assert "| diffusers eager fp16 | 70.0 (60.0-80.0) |  |  | 1.00 | 0.57 | 0.07 | 0.07 |  | 1.00 |  |" in text
    assert "PASS  demo: onnxruntime fp16  (0 s)  PSNR 50 dB" in text
    assert text.endswith("6 PASS, 0 FAIL, 0 SKIP")
    assert checked(outcomes)
    failed = [*outcomes, Outcome(job="x", kind="speed", status="FAIL", detail="killed")]
    assert not checked(failed)
    assert "FAIL  x  (0 s)  killed" in as_text(H200, failed)
    assert as_json(H200, outcomes, {})["versions"] == {"onnxruntime-gpu": "1.31"}


def test_without_a_gpu_it_says_so_and_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "look", lambda: NONE)
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu_check.py", "--model", "demo", "--out", str(tmp_path / "told.json"), "--work", str(tmp_path / "work")],
    )
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 1
    told = json.loads((tmp_path / "told.json").read_text())
    assert {outcome["status"] for outcome in told["outcomes"]} == {"SKIP"}
    assert told["machine"]["gpu"] is None
    assert os.listdir(tmp_path) == ["told.json"]
    out, progress = capsys.readouterr()
    assert "SKIP: no GPU path was checked" in out
    assert "SKIP  demo: onnxruntime fp16  (0 s)  no driver" in progress


def test_a_task_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The script's own protocol: an export that is there already."""
    (tmp_path / "fp16").mkdir()
    one = Job(
        name="demo: export fp16", kind="prepare", task="export_demo", limit=60,
        arguments={"folder": str(tmp_path), "precision": "fp16"},
    )  # fmt: skip
    (outcome,) = run_jobs([one], H200, tmp_path)
    assert (outcome.status, outcome.detail) == ("PASS", str(tmp_path / "fp16")), outcome.detail


def test_facts_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_checks import facts as module

    from telecine.doctor.probes import Probe

    cuda, with_tensorrt = "CUDAExecutionProvider", "TensorrtExecutionProvider"
    answers = {
        ("gpu",): Probe({"gpus": [{"name": "RTX 4090", "sm": "89", "memory": 24 * GIB}], "driver": "13.0"}),
        ("imports", "torch", "diffusers"): Probe({"loaded": {"torch": "2.13"}, "cuda": None}),
        ("onnxruntime",): Probe({"version": "1.31"}),
        ("onnxruntime_cuda", cuda): Probe({"providers": [cuda, "CPUExecutionProvider"]}),
        ("onnxruntime_cuda", with_tensorrt): Probe({"providers": ["CPUExecutionProvider"]}),
        ("tensorrt", "tensorrt"): Probe({}, "killed by SIGSEGV"),
        ("tensorrt", "tensorrt_rtx"): Probe({"version": "1.7"}),
        ("cuda",): Probe({"refused": None, "compute_capability": "8.9"}),
    }
    monkeypatch.setattr(module, "run_probe", lambda *asked, **_: answers[asked])
    facts = module.look()
    assert (facts.gpu, facts.capability, facts.gpu_memory) == ("RTX 4090", 89, 24 * GIB)
    assert facts.works == {ONNXRUNTIME: "1.31", RTX: "1.7", CUDA_BINDINGS: ""}
    missing = f"{with_tensorrt} does not load: install onnxruntime-gpu, and the libraries that it is built for"
    assert facts.broken == {TORCH: "built for CPUs", ONNXRUNTIME_TENSORRT: missing, TENSORRT: "killed by SIGSEGV"}
    answers[("gpu",)] = Probe({"gpus": []})
    none = module.look()
    assert none.gpu is None
    assert set(none.broken.values()) == {"there is no NVIDIA GPU"}
