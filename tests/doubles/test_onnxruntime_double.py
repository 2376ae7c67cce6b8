"""The double of onnxruntime-gpu offers what the real package does, and finds what breaks its rules."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doubles.cuda_memory import view
from doubles.cuda_runtime import CudaDouble
from doubles.onnxruntime_module import CUDA, InferenceSession, IOBinding, make_onnxruntime
from telecine.bundle import Bundle

real = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("double", [InferenceSession, IOBinding])
def test_every_method_is_the_real_ones(double: type) -> None:
    """The package for the CPU has the same Python API as that for GPUs."""
    for name, method in vars(double).items():
        if inspect.isfunction(method) and (not name.startswith("_") or name == "__init__"):
            theirs = inspect.signature(getattr(getattr(real, double.__name__), name))
            assert list(inspect.signature(method).parameters) == list(theirs.parameters), name


def test_the_module_has_what_the_real_one_has() -> None:
    module = make_onnxruntime(CudaDouble())
    assert [name for name in vars(module) if not name.startswith("__") and not hasattr(real, name)] == ["made"]
    assert callable(real.preload_dlls)


def test_places_of_inputs_are_told_as_the_real_one_tells(tiny_bundle: Path) -> None:
    path = Bundle.open(tiny_bundle).path(Bundle.open(tiny_bundle).graph("text_encoder").file)
    session = real.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [place.name for place in session.get_input_memory_infos()] == ["Cpu"]


@pytest.fixture
def cuda() -> CudaDouble:
    return CudaDouble(capabilities=("8.9", "9.0"))


@pytest.fixture
def session(cuda: CudaDouble, tiny_bundle: Path) -> Any:
    stream = int(cuda.cudaStreamCreateWithFlags(1)[1])
    bundle = Bundle.open(tiny_bundle)
    options = {"device_id": "0", "user_compute_stream": str(stream), "enable_cuda_graph": "1"}
    path = str(bundle.path(bundle.graph("text_encoder").file))
    return make_onnxruntime(cuda).InferenceSession(path, real.SessionOptions(), providers=[(CUDA, options)])


def bound(cuda: CudaDouble, session: Any) -> tuple[IOBinding, int, int]:
    binding = session.io_binding()
    tokens, out = cuda.cudaMalloc(64)[1], cuda.cudaMalloc(8 * 32 * 4)[1]
    binding.bind_input("input_ids", "cuda", 0, np.int64, [1, 8], tokens)
    binding.bind_output("prompt_embeds", "cuda", 0, np.float32, [1, 8, 32], out)
    return binding, tokens, out


def options(**entries: str) -> Any:
    made = real.RunOptions()
    for name, value in entries.items():
        made.add_run_config_entry(name, value)
    return made


def fill(cuda: CudaDouble, address: int, seed: int) -> None:
    content = np.random.default_rng(seed).integers(0, 300, 8)
    cuda.write(address, np.frombuffer(content.tobytes(), np.uint8))


def test_a_run_waits_unless_told_not_to(cuda: CudaDouble, session: Any) -> None:
    binding, tokens, _ = bound(cuda, session)
    fill(cuda, tokens, 0)
    session.run_with_iobinding(binding, options(gpu_graph_id="-1"))
    assert cuda.idle()
    session.run_with_iobinding(binding, options(gpu_graph_id="-1", disable_synchronize_execution_providers="1"))
    assert not cuda.idle()


def test_a_graph_has_the_addresses_that_it_was_captured_with(cuda: CudaDouble, session: Any) -> None:
    """As the real one: what is bound later under its id is not looked at."""
    binding, tokens, out = bound(cuda, session)
    fill(cuda, tokens, 0)
    session.run_with_iobinding(binding, options(gpu_graph_id="1"))
    first = session_output(out)
    other, more, unused = bound(cuda, session)
    fill(cuda, more, 1)
    fill(cuda, tokens, 2)
    session.run_with_iobinding(other, options(gpu_graph_id="1"))
    assert not np.array_equal(session_output(out), first)
    assert set(np.frombuffer(session_output(unused).tobytes(), np.uint8)) == {0xCD}
    assert cuda.violations == []


def test_what_breaks_a_rule_is_found(cuda: CudaDouble, session: Any) -> None:
    binding, tokens, out = bound(cuda, session)
    with pytest.raises(RuntimeError, match="Invalid argument: input_ids of int32"):
        binding.bind_input("input_ids", "cuda", 0, np.int32, [1, 8], tokens)
    with pytest.raises(RuntimeError, match="Missing Input"):
        session.run_with_iobinding(session.io_binding())
    binding.bind_input("input_ids", "cpu", 0, np.int64, [1, 8], tokens)
    binding.bind_input("input_ids", "cuda", 1, np.int64, [1, 8], tokens)
    binding.bind_input("input_ids", "cuda", 0, np.int64, [1, 8], tokens + 8)
    binding.bind_output("prompt_embeds", "cpu", 0, np.float32, [1, 8, 32], out)
    assert [rule.split(": ")[0].split(" is ")[1] for rule in cuda.violations] == [
        "bound in cpu memory and wanted in cuda",
        "not in the memory of device 1",
        "not in the memory of device 0",
        "bound in cpu memory",
    ]


def session_output(address: int) -> np.ndarray:
    return view(address, 8 * 32 * 4).view(np.float32).copy()
