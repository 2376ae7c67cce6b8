"""What jobs do, each in a process of its own. A task returns a status, a line that says why, and figures."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import telecine
from gpu_checks.models import (
    check_request,
    diffusers_pipeline,
    diffusers_prompts,
    export_demo,
    export_real_size,
    prompts,
)
from telecine.atomic import atomic_file
from telecine.backends.base import Session
from telecine.backends.cuda.array import DeviceArray, DeviceView
from telecine.backends.cuda.device import Device
from telecine.bench.compare import compare
from telecine.bench.competitor import Competitor
from telecine.bench.device import DevicePeak, back_to_back
from telecine.bench.fresh import peak_memory
from telecine.bench.ours import Telecine
from telecine.bench.settings import Settings
from telecine.picture_quality import psnr

Frames = npt.NDArray[np.float32]
TELECINE = (sys.executable, "-c", "from telecine.cli import main; main()")
# Of frames in [0, 1] at fp32, anywhere and on average: what the runtime promises next to diffusers.
MOST, MEAN = 2e-3, 2e-5
# PSNR in dB, 3 below what an export must reach on the CPU: a GPU adds up in another order.
FLOORS = {"fp16": 37.0, "bf16": 32.0, "fp8": 25.0}
# Random weights are no model, and what they do to rounding errors is not known beforehand: signal to noise, in dB,
# that a wrong network, next to 0, does not reach.
RANDOM_FLOORS = {"fp16": 20.0, "bf16": 12.0, "fp8": 6.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: str = "PASS"
    detail: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def build(bundle: str, target: str, engines: str, workloads: list[str]) -> Answer:
    """`telecine build`: what is there stays."""
    sizes = [word for each in workloads for word in ("--workload", each)]
    command = [*TELECINE, "build", bundle, "--target", target, "--engines", engines, *sizes]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)  # it has said why
    return Answer(detail=engines)


def reference(model: str, bundle: str, answer: str) -> Answer:
    """Frames of ONNX Runtime's CPU provider at fp32, as `frames` in a file."""
    with telecine.load(bundle, backend="onnxruntime", device="cpu") as pipe:
        frames = pipe.generate(**check_request(model)).frames
    assert frames is not None
    with atomic_file(answer) as partial, partial.open("wb") as file:
        np.savez(file, frames=frames)
    return Answer(detail=f"{'x'.join(map(str, frames.shape))}, standard deviation {frames.std():.3g}")


def check(model: str, reference: str, route: Mapping[str, Any], bundle: str, engines: str | None) -> Answer:
    """The same request on a GPU, next to the reference."""
    with np.load(reference) as kept:
        wanted = kept["frames"]
    with _pipeline(route, bundle, engines) as pipe:
        frames = pipe.generate(**check_request(model)).frames
    assert frames is not None
    return judge(frames, wanted, precision=route["precision"], trained=model == "demo")


def judge(frames: Frames, wanted: Frames, *, precision: str, trained: bool) -> Answer:
    """Whether frames are those that are wanted, within what a precision may change."""
    off = np.abs(frames.astype(np.float64) - wanted)
    figures = {"max_abs": float(off.max()), "mean_abs": float(off.mean()), "psnr": psnr(frames, wanted)}
    # The same ratio with the reference's deviation for a peak of 1.
    figures["snr"] = figures["psnr"] + 20 * float(np.log10(wanted.std(dtype=np.float64)))
    if precision == "fp32":
        good = figures["max_abs"] <= MOST and figures["mean_abs"] <= MEAN
        bound = f"at most {MOST:g} anywhere, {MEAN:g} on average"
    else:
        measure, floor = ("psnr", FLOORS[precision]) if trained else ("snr", RANDOM_FLOORS[precision])
        good = figures[measure] >= floor  # NaN is not
        bound = f"{measure.upper()} of {floor:g} dB or more"
    detail = (
        f"max abs {figures['max_abs']:.2g}, mean {figures['mean_abs']:.2g}, PSNR {figures['psnr']:.1f} dB, "
        f"SNR {figures['snr']:.1f} dB; tolerance: {bound}"
    )
    finite = {name: value if np.isfinite(value) else None for name, value in figures.items()}  # JSON has no others
    return Answer(status="PASS" if good else "FAIL", detail=detail, figures=finite)


def speed(
    model: str, settings: Mapping[str, Any], route: Mapping[str, Any], bundle: str, engines: str | None, started: float
) -> Answer:
    """Generations on a route, timed by `telecine bench`'s code; then its transformer with no host between calls."""
    asked = Settings.parse(settings)
    ours = _Watched(
        lambda: Telecine(
            Path(bundle),
            threads=asked.threads,
            device=asked.device,
            name=route["name"],
            backend=route["backend"],
            engines=Path(engines) if engines else None,
            cuda_graphs=route["cuda_graphs"],
            prompts=prompts(model),
            providers=tuple(route["providers"]),
        )
    )
    figures = _timed(ours, asked, started)
    with _recorded(ours.made.network("transformer")) as recorded:
        ours.made.generate(asked, lambda: None)
    device = Device.open(asked.device)
    figures["calls_per_step"] = recorded.calls / asked.num_inference_steps
    figures["back_to_back"] = back_to_back(ours.made.network("transformer"), recorded.feeds, device=device)
    ours.made.close()
    return Answer(figures=figures)


def speed_of_diffusers(
    model: str, settings: Mapping[str, Any], name: str, precision: str, compiled: bool, started: float
) -> Answer:
    """The same generations by diffusers, eager or compiled."""
    from telecine_export.bench.competitor import Diffusers

    asked = Settings.parse(settings)

    def make() -> Competitor:
        made = Diffusers(
            diffusers_pipeline(model, precision),
            threads=asked.threads,
            device=asked.device,
            compiled=compiled,
            prompts=diffusers_prompts(model, precision, asked.device),
        )
        made.name = name
        return made

    figures = _timed(_Watched(make), asked, started)
    if model == "real-size":  # its weights are drawn on the host first, which no real one is
        figures |= {"start_up": None, "peak_memory": None}
    return Answer(figures=figures)


class _Watched:
    """A competitor that is made within the time and the memory that is measured; when its first step ended."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self.first_step: float | None = None

    def start(self) -> None:
        self.made = self._make()
        self.name: str = self.made.name

    def generate(self, settings: Settings, mark: Callable[[], None]) -> Mapping[str, float]:
        def watched() -> None:
            self.first_step = self.first_step or time.monotonic()
            mark()

        stages: Mapping[str, float] = self.made.generate(settings, watched)
        return stages

    def versions(self) -> Mapping[str, str]:
        versions: Mapping[str, str] = self.made.versions()
        return versions


def _timed(watched: _Watched, settings: Settings, started: float) -> dict[str, Any]:
    """Stages, start-up from `started` on the clock that processes share, peaks of memory, versions."""
    with DevicePeak(settings.device) as device:
        watched.start()
        results = compare([watched], settings)
    assert watched.first_step is not None
    return {
        "stages": results["stages"][watched.name],
        "start_up": watched.first_step - started,
        "peak_device_memory": device.peak,
        "peak_memory": peak_memory(),
        "versions": dict(watched.versions()),
    }


@dataclass(slots=True)
class _Recorded:
    """Calls of a session, and what was bound at the first one."""

    calls: int = 0
    feeds: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


@contextmanager
def _recorded(session: Session) -> Iterator[_Recorded]:
    """Look at what a session is given, while it runs as ever."""
    recorded, bound = _Recorded(), dict[str, Any]()
    bind, enqueue = session.bind, session.enqueue

    def watched_bind(name: str, buffer: Any) -> None:
        bound[name] = buffer
        bind(name, buffer)

    def watched_enqueue(stream: int = 0) -> None:
        if not recorded.calls:
            recorded.feeds = {name: _on_host(bound[name]) for name in session.inputs}
        recorded.calls += 1
        enqueue(stream)

    session.bind, session.enqueue = watched_bind, watched_enqueue  # type: ignore[method-assign]
    try:
        yield recorded
    finally:
        del session.bind, session.enqueue


def _on_host(buffer: Any) -> npt.NDArray[Any]:
    if isinstance(buffer, DeviceView):
        whole = buffer.owner.download().reshape(-1).view(np.uint8)
        return whole[buffer.offset : buffer.offset + buffer.nbytes].view(buffer.dtype).reshape(buffer.shape)
    return buffer.download() if isinstance(buffer, DeviceArray) else np.array(buffer)


def _pipeline(route: Mapping[str, Any], bundle: str, engines: str | None) -> telecine.Pipeline:
    providers = tuple(route["providers"])
    return telecine.load(
        bundle,
        backend=route["backend"],
        device="cuda",
        engines=engines,
        options=telecine.OnnxRuntimeOptions(providers=providers) if providers else None,
        cuda_graphs=route["cuda_graphs"],
    )


def _exported(export: Callable[[str, str], str]) -> Callable[..., Answer]:
    return lambda folder, precision: Answer(detail=export(folder, precision))


TASKS: Mapping[str, Callable[..., Answer]] = {
    "export_demo": _exported(export_demo),
    "export_real_size": _exported(export_real_size),
    "reference": reference,
    "build": build,
    "check": check,
    "speed": speed,
    "speed_of_diffusers": speed_of_diffusers,
}
