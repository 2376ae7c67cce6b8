"""The TensorRT double's rules, each broken once: what NVIDIA forbids fails here, or is kept in `violations`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doubles.cuda_memory import view
from doubles.cuda_runtime import CudaDouble
from doubles.plans import write_plan
from doubles.tensorrt_module import make_tensorrt
from telecine.bundle import Bundle

pytest.importorskip("onnxruntime")

IDS = np.arange(8).reshape(1, 8)


class Machine:
    """A context of the text encoder, and buffers of its size."""

    def __init__(self, bundle: Bundle, folder: Path, **options: Any) -> None:
        self.cuda = CudaDouble()
        self.trt: Any = make_tensorrt(self.cuda)
        self.said: list[str] = []
        log = type("Log", (self.trt.ILogger,), {"log": lambda _, severity, msg: self.said.append(msg)})
        sizes = ({"text_length": (4, 8, 16)}, {"text_length": (32, 64, 64)})
        plan = write_plan(bundle, "text_encoder", engines=folder, profiles=sizes, **options)
        self.runtime = self.trt.Runtime(log())
        self.engine = self.runtime.deserialize_cuda_engine(plan.read_bytes())
        self.context = self.engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.stream = int(self.cuda.cudaStreamCreateWithFlags(1)[1])
        self.ids, self.out, self.scratch = (self.cuda.cudaMalloc(size)[1] for size in (64, 8 * 32 * 4, 4096))

    def set_shape(self, length: int = 8) -> bool:
        return self.context.set_input_shape("input_ids", (1, length))

    def set_memory(self) -> None:
        self.context.set_device_memory(self.scratch, 4096)

    def set_addresses(self) -> None:
        assert self.context.set_tensor_address("input_ids", self.ids)
        assert self.context.set_tensor_address("prompt_embeds", self.out)

    def ready(self) -> None:
        self.set_shape()
        self.set_memory()
        self.set_addresses()

    def run(self, stream: int | None = None) -> bool:
        return self.context.execute_async_v3(stream or self.stream)


@pytest.fixture
def machine(tiny_bundle: Path, tmp_path: Path) -> Machine:
    machine = Machine(Bundle.open(tiny_bundle), tmp_path)
    machine.cuda.write(machine.ids, IDS.view(np.uint8).ravel())
    return machine


def test_it_runs_when_the_stream_is_waited_for(machine: Machine) -> None:
    machine.ready()
    assert machine.run()
    assert set(view(machine.out, 1024)) == {0xCD}
    machine.cuda.cudaStreamSynchronize(machine.stream)
    assert np.isfinite(view(machine.out, 1024).view(np.float32)).all()
    assert machine.cuda.violations == []


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (("set_addresses",), "not set: input_ids"),
        (("set_shape", "set_memory"), "not set: input_ids, prompt_embeds"),
        (("set_shape", "set_addresses"), "no device memory"),
        (("set_shape", "set_memory", "set_shape", "set_addresses"), "no device memory"),
    ],
)
def test_nothing_may_be_missing(machine: Machine, steps: tuple[str, ...], words: str) -> None:
    for step in steps:
        getattr(machine, step)()
    assert not machine.run()
    assert words in machine.said[-1]


def test_shapes_are_in_the_active_profile(machine: Machine) -> None:
    assert not machine.set_shape(32)
    assert "outside of profile 0" in machine.said[-1]
    assert machine.context.set_optimization_profile_async(1, machine.stream)
    assert machine.set_shape(32)
    assert not machine.context.set_optimization_profile_async(2, machine.stream)


def test_another_profile_forgets_the_shapes(machine: Machine) -> None:
    machine.ready()
    machine.context.set_optimization_profile_async(0, machine.stream)
    assert not machine.run()
    machine.ready()
    assert machine.run()


def test_alignment(machine: Machine) -> None:
    assert not machine.context.set_tensor_address("input_ids", machine.ids + 16)
    assert "not aligned to 256" in machine.cuda.violations[0]


@pytest.mark.parametrize(("offset", "size"), [(16, 4000), (0, 8)])
def test_memory_for_activations(machine: Machine, offset: int, size: int) -> None:
    machine.set_shape()
    machine.context.set_device_memory(machine.scratch + offset, size)
    assert "not aligned, or too small" in machine.cuda.violations[0]


def test_sizes_before_shapes(machine: Machine) -> None:
    machine.context.update_device_memory_size_for_shapes()
    assert "before all input shapes" in machine.cuda.violations[0]


@pytest.mark.parametrize("which", ["ids", "out", "scratch"])
def test_buffers_live_until_the_work_is_done(machine: Machine, which: str) -> None:
    machine.ready()
    machine.run()
    machine.cuda.cudaFree(getattr(machine, which))
    assert "freed that the pending operation" in machine.cuda.violations[0]


def test_one_context_on_two_streams(machine: Machine) -> None:
    machine.ready()
    machine.run()
    machine.run(int(machine.cuda.cudaStreamCreateWithFlags(1)[1]))
    assert any("two streams that nothing orders" in rule for rule in machine.cuda.violations)


def test_one_context_in_two_threads(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.ready()
    inside, leave = threading.Event(), threading.Event()
    real = machine.context._incomplete

    def slow() -> Any:
        inside.set()
        leave.wait(10)
        return real()

    monkeypatch.setattr(machine.context, "_incomplete", slow)
    thread = threading.Thread(target=machine.run)
    thread.start()
    assert inside.wait(10)
    assert not machine.run()
    leave.set()
    thread.join()
    assert "two threads use one execution context" in machine.cuda.violations[0]


def test_the_runtime_outlives_the_engine(machine: Machine) -> None:
    machine.ready()
    del machine.runtime
    machine.run()
    assert "after its Runtime is gone" in machine.cuda.violations[0]


def test_budgets_come_before_contexts(tiny_bundle: Path, tmp_path: Path) -> None:
    machine = Machine(Bundle.open(tiny_bundle), tmp_path, weight_streaming=True)
    machine.engine.weight_streaming_budget_v2 = 1
    assert "with contexts alive" in machine.cuda.violations[0]


class TestRefit:
    @pytest.fixture
    def refit(self, tiny_bundle: Path, tmp_path: Path) -> Callable[..., Machine]:
        pytest.importorskip("onnx")
        return lambda **options: Machine(Bundle.open(tiny_bundle), tmp_path, **options)

    def test_only_with_the_flag(self, refit: Callable[..., Machine]) -> None:
        machine = refit()
        refitter = machine.trt.Refitter(machine.engine, machine.runtime.logger)
        assert "without" in machine.said[-1] or "not built with" in machine.said[-1]
        assert refitter.get_all_weights() == []

    def test_names_and_sizes(self, refit: Callable[..., Machine]) -> None:
        machine = refit(refit=True)
        refitter = machine.trt.Refitter(machine.engine, machine.runtime.logger)
        array = np.zeros(3, np.float32)
        weights = machine.trt.Weights(machine.trt.DataType.FLOAT, array.ctypes.data, array.size)
        for name in ("no such", refitter.get_all_weights()[0]):
            assert not refitter.set_named_weights(name, weights)

    def test_a_stripped_engine_misses_all(self, refit: Callable[..., Machine]) -> None:
        machine = refit(refit=True, stripped=True)
        machine.ready()
        assert not machine.run()
        refitter = machine.trt.Refitter(machine.engine, machine.runtime.logger)
        assert sorted(refitter.get_missing_weights()) == sorted(refitter.get_all_weights())
        assert not refitter.refit_cuda_engine()

    def test_pending_work(self, refit: Callable[..., Machine]) -> None:
        machine = refit(refit=True)
        machine.cuda.write(machine.ids, IDS.view(np.uint8).ravel())
        machine.ready()
        machine.run()
        machine.trt.Refitter(machine.engine, machine.runtime.logger).refit_cuda_engine()
        assert "refitted with work pending" in machine.cuda.violations[0]
