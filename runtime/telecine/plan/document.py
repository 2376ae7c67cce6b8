"""`plan.json`: a program, its buffers and what it runs, as JSON; runtime/embed/README.md specifies it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from telecine.bundle import Bundle
from telecine.engines_folder import list_engines
from telecine.plan.memory import allocate
from telecine.plan.program import AUDIO, RESULT, Buffer, Compute, Emit, Operand, Program, Progress, Run, Step, View

# A plan with sound has an output more, which readers of silent ones would write over the frames.
SILENT, WITH_SOUND = FORMATS = (1, 2)
FILE_NAME = "plan.json"
TENSORS = "tensors.safetensors"


def document(program: Program, bundle: Bundle, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `plan.json`: `about`, components, inputs, memory, buffers and steps. Names the buffers."""
    buffers = program.buffers()
    _name(buffers, program.steps)
    allocations = allocate(program)
    runs = [step for step in program.steps if isinstance(step, Run)]
    return {
        "format": WITH_SOUND if AUDIO in about["output"] else SILENT,
        **about,
        "components": _components(bundle, runs),
        "inputs": [buffer.name for buffer in buffers if buffer.asked],
        "memory": list(allocations.blocks),
        "buffers": {each.name: _buffer(each, allocations.block_of.get(each)) for each in buffers},
        "steps": [_step(step) for step in program.steps],
    }


def as_json(content: Mapping[str, Any]) -> str:
    """A line for each step and buffer."""
    lists = {name: content[name] for name in ("buffers", "steps")}
    head = json.dumps({name: value for name, value in content.items() if name not in lists}, indent=1)
    buffers = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in lists["buffers"].items())
    steps = ",\n".join(f"  {json.dumps(step)}" for step in lists["steps"])
    return head.removesuffix("\n}") + f',\n "buffers": {{\n{buffers}\n }},\n "steps": [\n{steps}\n ]\n}}\n'


def _name(buffers: Sequence[Buffer], steps: Sequence[Step]) -> None:
    """Give every buffer a name of its own: after the input or output that it is, or what it fills."""
    for step in steps:
        if isinstance(step, Compute) and step.operation == "copy" and isinstance(step.operands[0], View):
            source = step.operands[0].buffer
            if source.constant is not None and step.out.buffer.name:
                source.name = source.name or f"{step.out.buffer.name}.values"
    taken: Counter[str] = Counter()
    for buffer in buffers:
        kind = buffer.name or ("scratch" if buffer.scratch else "constant")
        taken[kind] += 1
        buffer.name = kind if taken[kind] == 1 else f"{kind}.{taken[kind]}"


def _buffer(buffer: Buffer, block: int | None) -> dict[str, Any]:
    lies = {"memory": block} if block is not None else {"tensor": True} if buffer.constant is not None else {}
    return {"dtype": buffer.dtype.name, "shape": list(buffer.shape), "bytes": buffer.bytes, **lies}


def _step(step: Step) -> dict[str, Any]:
    if isinstance(step, Run):
        sides = {"inputs": step.inputs, "outputs": step.outputs}
        return {"op": "run", "component": step.component, "role": step.role} | {
            side: {name: _operand(view) for name, view in views.items()} for side, views in sides.items()
        }
    if isinstance(step, Compute):
        operands = zip("ab", step.operands, strict=False)
        return {"op": step.operation, "out": _operand(step.out)} | {name: _operand(each) for name, each in operands}
    if isinstance(step, Progress):
        place = {"step": step.step, "steps": step.steps, "sigma": step.sigma}
        sound = {} if step.audio_latents is None else {"audio_latents": _operand(step.audio_latents)}
        return {"op": "progress", **place, "latents": _operand(step.latents), **sound}
    assert isinstance(step, Emit)
    output = {} if step.output == RESULT else {"output": step.output}
    return {"op": "emit", **output, "start": step.start, "value": _operand(step.value)}


def _operand(operand: Operand) -> Any:
    """A number, a buffer's name where the view is all of it, or the view."""
    if not isinstance(operand, View):
        return operand
    if operand.whole:
        return operand.buffer.name
    return {
        "buffer": operand.buffer.name,
        "offset": operand.offset,
        "shape": list(operand.shape),
        "strides": list(operand.strides),
    }


def _components(bundle: Bundle, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """For each component and role that runs: the files in the bundle that hold it."""
    engines = [(each.sidecar, each.plan.relative_to(bundle.root)) for each in list_engines(bundle.root / "engines")]
    found: dict[str, dict[str, Any]] = {}
    for component, role in dict.fromkeys((run.component, run.role) for run in runs):
        part, graph = bundle.component(component), bundle.graph(component, role)
        found.setdefault(component, {})[role] = {
            "precision": part.precision,
            "graph": graph.file.path,
            "graph_sha256": graph.file.sha256,
            **({"onnxruntime_cpu": graph.onnxruntime_cpu.path} if graph.onnxruntime_cpu else {}),
            "weights": part.weights.path,
            "weights_sha256": part.weights.sha256,
            "engines": {
                f"{sidecar.target}-trt{sidecar.library_version}": Path(plan).as_posix()
                for sidecar, plan in engines
                if (sidecar.component, sidecar.role) == (component, role)
            },
        }
    return found
