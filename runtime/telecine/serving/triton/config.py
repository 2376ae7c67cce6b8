"""`config.pbtxt` of each model: Triton's ModelConfig in protobuf's text format.

Source: triton-inference-server/common `protobuf/model_config.proto`; server `docs/user_guide/model_configuration.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from telecine.errors import RequestError
from telecine.manifest import TensorSpec
from telecine.serving.triton.inputs import INPUTS

# The first line of every file: what `--overwrite` knows a repository of ours by.
MARK = "# Written by telecine triton."
# Name, type and dimensions. A response has the first three of them, or the others: `latents` in place of `frames`
# where output_type is "latent", flat, as their number of axes differs between pipelines. Models that make sound have
# `audio` and `sample_rate` beside frames, and `audio_latents` beside latents.
OUTPUTS = (
    ("step", "TYPE_INT64", (1,)),
    ("steps", "TYPE_INT64", (1,)),
    ("sigma", "TYPE_FP64", (1,)),
    ("frames", "TYPE_UINT8", (-1, -1, -1, -1, 3)),
    ("latents", "TYPE_FP32", (-1,)),
    ("latents_shape", "TYPE_INT64", (-1,)),
    ("audio", "TYPE_FP32", (-1, -1, -1)),
    ("sample_rate", "TYPE_INT64", (1,)),
    ("audio_latents", "TYPE_FP32", (-1, -1, -1, -1)),
    ("seeds", "TYPE_INT64", (-1,)),
    ("frame_rate", "TYPE_FP64", (1,)),
)
DATA_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "int64": "TYPE_INT64",
    "int32": "TYPE_INT32", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL",
}  # fmt: skip


class Word(str):
    """A value without quotes: a member of an enumeration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """On which devices a model runs, `count` instances on each: "auto", "cpu", "cuda" (every GPU) or several "cuda:N".

    Raises:
        RequestError: another device, or devices that exclude each other; no positive count.
    """

    devices: tuple[str, ...] = ("auto",)
    count: int = 1

    def __post_init__(self) -> None:
        numbered = all(each.startswith("cuda:") and each[5:].isdecimal() for each in self.devices)
        if not self.devices or not (numbered or (len(self.devices) == 1 and self.devices[0] in KINDS)):
            raise RequestError(
                f"device {', '.join(self.devices)}",
                expected="auto, cpu, cuda, or one or several of cuda:0, cuda:1, ...",
                fix="Use --device cuda for every GPU that the server sees.",
            )
        if self.count < 1:
            raise RequestError(f"--instances {self.count}", expected="1 or more", fix="Leave it out for 1.")

    @property
    def gpus(self) -> list[int]:
        return [int(each[5:]) for each in self.devices if each.startswith("cuda:")]

    def group(self, **more: Any) -> dict[str, Any]:
        """An `instance_group`."""
        kind = "KIND_GPU" if self.gpus else KINDS[self.devices[0]]
        return {"count": self.count, "kind": Word(kind), "gpus": self.gpus, **more}


KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}


def pipeline_config(name: str, placement: Placement, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Of the model that makes videos; `parameters` go to its `initialize`, and to the Python backend."""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [
            {"name": each.name, "data_type": Word(each.data_type), "dims": list(each.dims), "optional": True}
            for each in INPUTS
        ],
        "output": [{"name": name, "data_type": Word(kind), "dims": list(dims)} for name, kind, dims in OUTPUTS],
        "instance_group": [placement.group()],
        "model_transaction_policy": {"decoupled": True},
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
    }


def graph_config(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], group: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Of a model that is one graph. Its batch is an axis like the others: Triton forms no batches of it."""
    return {
        "name": name,
        "max_batch_size": 0,
        "input": [_tensor(spec) for spec in inputs],
        "output": [_tensor(spec) for spec in outputs],
        "instance_group": [group],
        **more,
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """A named axis is free, whatever rule it obeys: ModelConfig knows fixed sizes and -1."""
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.shape]
    return {"name": spec.name, "data_type": Word(DATA_TYPES[spec.dtype]), "dims": dims}


def as_text(config: Mapping[str, Any]) -> str:
    """`config.pbtxt`: mappings are messages; a list is a repeated field, and an empty one is left out."""
    return "\n".join([MARK, *_lines(config, "")]) + "\n"


def _lines(message: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for field, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines += [f"{indent}{field} {{", *_lines(item, indent + "  "), f"{indent}}}"]
            else:
                lines.append(f"{indent}{field}: {_scalar(item)}")
    return lines


def _scalar(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Word) or not isinstance(value, str):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
