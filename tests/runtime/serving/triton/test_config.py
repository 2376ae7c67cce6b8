"""config.pbtxt, read by Triton's own message where its client is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from telecine.errors import RequestError
from telecine.manifest import TensorSpec
from telecine.serving.triton.config import MARK, OUTPUTS, Placement, as_text, graph_config, pipeline_config
from telecine.serving.triton.inputs import INPUTS


def test_text_format() -> None:
    config = {
        "name": 'a "b" \\ c\n',
        "flag": True,
        "count": 2,
        "none": [],
        "dims": [-1, 3],
        "inner": {"deep": {"x": 1}},
    }
    assert as_text(config) == (
        f'{MARK}\nname: "a \\"b\\" \\\\ c\\n"\nflag: true\ncount: 2\ndims: -1\ndims: 3\n'
        "inner {\n  deep {\n    x: 1\n  }\n}\n"
    )


def test_triton_reads_the_pipeline_s(call: Callable[..., Any]) -> None:
    placement = Placement(devices=("cuda:0", "cuda:3"), count=2)
    parameters = {"backend": "auto", "EXECUTION_ENV_PATH": '/a "b"\\ö'}
    read = call("parse", as_text(pipeline_config("telecine", placement, parameters)))
    assert read["name"] == "telecine"
    assert read["backend"] == "python"
    assert read["model_transaction_policy"] == {"decoupled": True}
    assert read["instance_group"] == [{"count": 2, "kind": "KIND_GPU", "gpus": [0, 3]}]
    assert read["parameters"] == {name: {"string_value": value} for name, value in parameters.items()}
    inputs = {each["name"]: (each["data_type"], tuple(map(int, each["dims"]))) for each in read["input"]}
    assert inputs == {each.name: (each.data_type, each.dims) for each in INPUTS}
    assert all(each["optional"] for each in read["input"])
    assert [(each["name"], each["data_type"], tuple(map(int, each["dims"]))) for each in read["output"]] == [*OUTPUTS]


def test_triton_reads_a_graph_s(call: Callable[..., Any]) -> None:
    inputs = (TensorSpec(name="video", dtype="float32", shape=("batch", 3, "8*latent_frames-7")),)
    outputs = (TensorSpec(name="moments", dtype="bfloat16", shape=("batch", 8)),)
    read = call("parse", as_text(graph_config("vae", inputs, outputs, Placement().group(), backend="onnxruntime")))
    assert read["input"] == [{"name": "video", "data_type": "TYPE_FP32", "dims": ["-1", "3", "-1"]}]
    assert read["output"] == [{"name": "moments", "data_type": "TYPE_BF16", "dims": ["-1", "8"]}]
    assert read["instance_group"] == [{"count": 1}]  # KIND_AUTO is the default, which JSON leaves out


@pytest.mark.parametrize(
    ("devices", "kind", "gpus"),
    [
        (("auto",), "KIND_AUTO", []),
        (("cpu",), "KIND_CPU", []),
        (("cuda",), "KIND_GPU", []),  # none named: all that the server sees
        (("cuda:1", "cuda:12"), "KIND_GPU", [1, 12]),
    ],
)
def test_instance_groups(devices: tuple[str, ...], kind: str, gpus: list[int]) -> None:
    assert Placement(devices=devices, count=3).group() == {"count": 3, "kind": kind, "gpus": gpus}


@pytest.mark.parametrize("devices", [(), ("gpu",), ("cuda:",), ("cpu", "cuda"), ("cuda", "cuda:0"), ("cuda:-1",)])
def test_other_devices_are_refused(devices: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="expected auto, cpu, cuda"):
        Placement(devices=devices)


def test_no_instances_are_refused() -> None:
    with pytest.raises(RequestError, match="--instances 0; expected 1 or more"):
        Placement(count=0)
