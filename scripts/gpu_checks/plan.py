"""Which jobs: for each model the bundles and engines, the reference, a check of every GPU path, and the speed table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demo_model.settings import SETTINGS

from gpu_checks.facts import ONNXRUNTIME, ONNXRUNTIME_TENSORRT, RTX, TENSORRT, TORCH
from gpu_checks.jobs import Job
from telecine_engines.targets import CAPABILITIES, FIRST_CAPABILITY

GIB = 1 << 30
MODELS = ("demo", "real-size")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
REAL_SIZES = ("768x512x121", "1216x704x121")
# Gigabytes of the real-size networks: 1.9e9 parameters of the transformer, 0.55e9 of the decoder.
REAL_DISK = {"fp32": 11, "fp16": 6, "bf16": 6, "fp8": 4}
REAL_GPU_MEMORY = {REAL_SIZES[0]: 20, REAL_SIZES[1]: 32}
KINDS = {TENSORRT: "trt", RTX: "rtx"}
HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A way to a GPU: arguments of `telecine.load`, and the library that they need. Another way is another route."""

    name: str
    library: str
    precision: str
    backend: str
    cuda_graphs: str | bool = "auto"
    providers: tuple[str, ...] = ()

    @property
    def has_engines(self) -> bool:
        return self.backend == "tensorrt"

    def gpus(self) -> dict[str, Any]:
        """Requirements of a job on it."""
        capabilities = CAPABILITIES[KINDS[self.library]] if self.has_engines else ()
        return {
            "libraries": (self.library,),
            "capabilities": capabilities,
            "first_capability": FIRST_CAPABILITY.get(self.precision, 0),
        }


def _routes() -> Iterator[Route]:
    for precision in ("fp32", "fp16", "bf16"):
        yield Route(name=f"onnxruntime {precision}", library=ONNXRUNTIME, precision=precision, backend="onnxruntime")
    yield Route(
        name="onnxruntime fp16, CUDA graphs", library=ONNXRUNTIME, precision="fp16", backend="onnxruntime",
        cuda_graphs=True,
    )  # fmt: skip
    yield Route(
        name="onnxruntime fp16, TensorRT provider", library=ONNXRUNTIME_TENSORRT, precision="fp16",
        backend="onnxruntime",
        providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    )  # fmt: skip
    for library in (TENSORRT, RTX):
        for precision in PRECISIONS:
            yield Route(name=f"{library} {precision}", library=library, precision=precision, backend="tensorrt")
        yield Route(
            name=f"{library} fp16, CUDA graphs", library=library, precision="fp16", backend="tensorrt", cuda_graphs=True
        )


ROUTES = tuple(_routes())
# diffusers beside them, by precision and whether torch.compile runs.
RIVALS = tuple((precision, compiled) for precision in ("fp16", "bf16") for compiled in (False, True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Models; rounds of the speed table and generations of a round that count; where bundles lie."""

    models: Sequence[str] = MODELS
    rounds: int = 3
    repeats: int = 2
    steps: int = 8
    work: Path


def plan(asked: Asked, capability: int) -> list[Job]:
    """All jobs, each after those that it needs; `capability` is the GPU's, which engines are built for."""
    return [job for model in asked.models for job in _of_model(model, asked, capability)]


def select(jobs: Sequence[Job], texts: Sequence[str]) -> list[Job]:
    """The jobs with one of these texts in their names, and those that they need; no text is all."""
    by_name = {job.name: job for job in jobs}
    kept: set[str] = set()
    waiting = [job.name for job in jobs if not texts or any(text in job.name for text in texts)]
    while waiting:
        name = waiting.pop()
        kept.add(name)
        waiting += by_name[name].after
    return [job for job in jobs if job.name in kept]


def _of_model(model: str, asked: Asked, capability: int) -> Iterator[Job]:
    folder = asked.work / model
    yield from _exports(model, folder)
    reference = f"{model}: reference on the CPU"
    yield Job(
        name=reference, kind="prepare", task="reference", limit=HOUR, after=(_export(model, "fp32"),),
        arguments={"model": model, "bundle": _bundle(folder, "fp32"), "answer": str(folder / "reference.npz")},
        memory=16 * GIB if model == "real-size" else GIB,
    )  # fmt: skip
    yield from _builds(model, folder, capability)
    for route in ROUTES:
        yield Job(
            name=f"{model}: {route.name}", kind="check", task="check", limit=HOUR / 2,
            after=(reference, *_needs(model, route)), **route.gpus(),
            gpu_memory=(16 if model == "real-size" else 1) * GIB,
            arguments={"model": model, "reference": str(folder / "reference.npz"), **_route(folder, route)},
        )  # fmt: skip
    yield from _speed(model, folder, asked)


def _exports(model: str, folder: Path) -> Iterator[Job]:
    for precision in PRECISIONS:
        yield Job(
            name=_export(model, precision), kind="prepare", task=f"export_{model.replace('-', '_')}", limit=HOUR,
            arguments={"folder": str(folder), "precision": precision},
            memory=8 * GIB, disk=(REAL_DISK[precision] if model == "real-size" else 1) * GIB,
        )  # fmt: skip


def _builds(model: str, folder: Path, capability: int) -> Iterator[Job]:
    """Engines of every library and precision; the two networks of a real size take minutes each."""
    sizes = list(dict.fromkeys([*sizes_of(model), check_size(model)]))
    for library, kind in KINDS.items():
        for precision in PRECISIONS:
            yield Job(
                name=_build(model, library, precision), kind="prepare", task="build", limit=2 * HOUR,
                after=(_export(model, precision),), libraries=(library,), capabilities=CAPABILITIES[kind],
                first_capability=FIRST_CAPABILITY.get(precision, 0),
                gpu_memory=(24 if model == "real-size" else 1) * GIB,
                memory=(32 if model == "real-size" else 4) * GIB,
                disk=(REAL_DISK[precision] if model == "real-size" else 1) * GIB,
                arguments={
                    "bundle": _bundle(folder, precision), "target": f"{kind}-sm{capability}",
                    "engines": str(folder / "engines" / kind / precision), "workloads": sizes,
                },
            )  # fmt: skip


def _speed(model: str, folder: Path, asked: Asked) -> Iterator[Job]:
    """Every competitor once a round: what disturbs the machine for a while disturbs all of them."""
    for size in sizes_of(model):
        settings = speed_settings(model, size, asked)
        common = {"model": model, "settings": settings}
        memory = (REAL_GPU_MEMORY[size] if model == "real-size" else 1) * GIB
        for turn in range(asked.rounds):
            for precision, compiled in RIVALS:
                rival = f"{'torch.compile' if compiled else 'diffusers eager'} {precision}"
                yield Job(
                    name=f"{model} {size}: {rival}, round {turn + 1}", kind="speed", task="speed_of_diffusers",
                    limit=HOUR, libraries=(TORCH,), first_capability=FIRST_CAPABILITY.get(precision, 0),
                    gpu_memory=memory,
                    arguments={**common, "name": rival, "precision": precision, "compiled": compiled},
                )  # fmt: skip
            for route in ROUTES:
                if route.precision != "fp32":
                    yield Job(
                        name=f"{model} {size}: {route.name}, round {turn + 1}", kind="speed", task="speed", limit=HOUR,
                        after=(f"{model}: {route.name}",), **route.gpus(), gpu_memory=memory,
                        arguments={**common, **_route(folder, route)},
                    )  # fmt: skip


def sizes_of(model: str) -> tuple[str, ...]:
    """Of the speed table."""
    return REAL_SIZES if model == "real-size" else (check_size(model),)


def check_size(model: str) -> str:
    """Of the video that checks compare, as `telecine build` takes it."""
    return "128x96x17" if model == "real-size" else "{width}x{height}x{num_frames}".format(**SETTINGS)


def size_of(text: str) -> dict[str, int]:
    return dict(zip(("width", "height", "num_frames"), map(int, text.split("x")), strict=True))


def speed_settings(model: str, size: str, asked: Asked) -> dict[str, Any]:
    """`telecine.bench.settings.Settings`, as it is told to the job."""
    return {
        **size_of(size), "num_inference_steps": asked.steps, "guidance_scale": 3.0, "repeats": asked.repeats,
        "warmups": 1, "threads": len(os.sched_getaffinity(0)), "device": "cuda",
    }  # fmt: skip


def _route(folder: Path, route: Route) -> dict[str, Any]:
    engines = str(folder / "engines" / KINDS[route.library] / route.precision) if route.has_engines else None
    return {"route": asdict(route), "bundle": _bundle(folder, route.precision), "engines": engines}


def _needs(model: str, route: Route) -> tuple[str, ...]:
    built = (_build(model, route.library, route.precision),) if route.has_engines else ()
    return (_export(model, route.precision), *built)


def _export(model: str, precision: str) -> str:
    return f"{model}: export {precision}"


def _build(model: str, library: str, precision: str) -> str:
    return f"{model}: build {library} {precision}"


def _bundle(folder: Path, precision: str) -> str:
    return str(folder / precision)
