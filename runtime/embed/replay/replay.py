"""Run a plan with NumPy and ONNX Runtime alone: the shortest interpreter, to read and to test others against.

python replay.py PLAN BUNDLE frames.npy

Of a plan with sound, frames.audio.npy stands beside.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[Any]

ELEMENTWISE: Mapping[str, Callable[..., Array]] = {
    "copy": np.positive,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "exp": np.exp,
    "rint": np.rint,
}
REDUCTIONS: Mapping[str, Callable[..., Array]] = {
    "std": lambda a: np.std(a, axis=-1, ddof=1),
    "dot": lambda a, b: np.einsum("bn,bn->b", a, b),
}


class Replay:
    """A plan with its memory and networks, ready to run as often as wanted."""

    def __init__(self, plan: Path, bundle: Path) -> None:
        import onnxruntime

        self.plan = json.loads((plan / "plan.json").read_text(encoding="utf-8"))
        blocks = [np.empty(size, np.uint8) for size in self.plan["memory"]]
        tensors = load_file(plan / "tensors.safetensors")
        self.buffers: dict[str, Array] = {}
        for name, entry in self.plan["buffers"].items():
            if "tensor" in entry:
                self.buffers[name] = tensors[name]
            elif "memory" in entry:
                self.buffers[name] = blocks[entry["memory"]][: entry["bytes"]].view(entry["dtype"])
            else:
                self.buffers[name] = np.empty(entry["shape"], entry["dtype"])
            self.buffers[name] = self.buffers[name].reshape(entry["shape"])
        self.sessions = {
            (component, role): onnxruntime.InferenceSession(str(bundle / files.get("onnxruntime_cpu", files["graph"])))
            for component, roles in self.plan["components"].items()
            for role, files in roles.items()
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The "result", frames or latents, for what the plan asks of its host; and its "audio", if there is any."""
        for name in self.plan["inputs"]:
            self.buffers[name][...] = inputs[name]
        output = self.plan["output"]
        entries = {"result": output} | ({"audio": output["audio"]} if "audio" in output else {})
        outputs = {name: np.empty(entry["shape"], entry["dtype"]) for name, entry in entries.items()}
        for step in self.plan["steps"]:
            operation = step["op"]
            if operation == "run":
                self._network(step)
            elif operation == "emit":
                value = self._view(step["value"])
                outputs[step.get("output", "result")][:, step["start"] : step["start"] + value.shape[1]] = value
            elif operation != "progress":
                self._compute(operation, step)
        return outputs

    def _network(self, step: Mapping[str, Any]) -> None:
        feeds = {name: self._view(view) for name, view in step["inputs"].items()}
        made = self.sessions[step["component"], step["role"]].run(list(step["outputs"]), feeds)
        for view, value in zip(step["outputs"].values(), made, strict=True):
            self._view(view)[...] = value

    def _compute(self, operation: str, step: Mapping[str, Any]) -> None:
        """Operands are widened to float64, and what comes of them is rounded to the type of `out`."""
        out = self._view(step["out"])
        operands = [np.asarray(self._view(step[name]), np.float64) for name in "ab" if name in step]
        function = ELEMENTWISE.get(operation) or REDUCTIONS[operation]
        out[...] = function(*operands)

    def _view(self, view: Any) -> Any:
        """An array that lies in a buffer, or a number."""
        if isinstance(view, str):
            return self.buffers[view]
        if isinstance(view, float):
            return view
        flat = self.buffers[view["buffer"]].reshape(-1)[view["offset"] :]
        strides = [step * flat.itemsize for step in view["strides"]]
        return np.lib.stride_tricks.as_strided(flat, view["shape"], strides)


def main() -> None:
    plan, bundle, out = map(Path, sys.argv[1:4])
    outputs = Replay(plan, bundle).run({})
    np.save(out, outputs["result"])
    if "audio" in outputs:
        np.save(out.with_suffix(".audio.npy"), outputs["audio"])


if __name__ == "__main__":
    main()
