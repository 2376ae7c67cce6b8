"""When launches are captured as CUDA graphs, and that a captured launch is the launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from doubles.cuda_runtime import CudaDouble, cudaError_t

from telecine.backends.cuda import graph as module
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.graph import KEPT, Launches
from telecine.backends.cuda.options import CudaGraphs, check_cuda_graphs
from telecine.backends.cuda.stream import Stream
from telecine.errors import BackendError


class Network:
    """What it is launched with, each time that the device has run it; `host` seconds pass in a launch."""

    def __init__(self, gpu: CudaDouble, stream: int) -> None:
        self.gpu, self.stream = gpu, stream
        self.ran: list[str] = []
        self.launched = 0
        self.clock = 0.0
        self.host = 0.0

    def plain(self, key: str) -> Callable[[], bool]:
        def launch() -> bool:
            self.launched += 1
            self.clock += self.host
            self.gpu.submit(self.stream, lambda: self.ran.append(key))
            return True

        return launch


@pytest.fixture
def device(gpu: CudaDouble) -> Device:
    return Device.open("cuda")


@pytest.fixture
def stream(device: Device) -> Iterator[Stream]:
    made = Stream(device)
    yield made
    made.close()


@pytest.fixture
def network(gpu: CudaDouble, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network(gpu, stream.handle)
    monkeypatch.setattr(module.time, "perf_counter", lambda: made.clock)
    return made


@pytest.fixture
def launches(device: Device, stream: Stream) -> Iterator[Callable[[CudaGraphs], Launches]]:
    made: list[Launches] = []

    def make(graphs: CudaGraphs) -> Launches:
        made.append(Launches(device, graphs))
        return made[-1]

    yield make
    stream.synchronize()
    for each in made:
        each.forget()


def run(launches: Launches, network: Network, keys: str) -> None:
    """A launch for each letter, waited for."""
    for key in keys:
        assert launches.launch(key, network.stream, network.plain(key))
        network.gpu.cudaStreamSynchronize(network.stream)
    assert network.ran == list(keys)


def test_true_captures_the_second_launch_of_each_key(launches: Callable[..., Launches], network: Network) -> None:
    run(launches(True), network, "abababaab")
    assert network.launched == 4  # of each key: one that ran, and one that was captured


def test_false_captures_nothing(launches: Callable[..., Launches], network: Network, gpu: CudaDouble) -> None:
    run(launches(False), network, "aaaa")
    assert network.launched == 4
    assert not {"cudaStreamBeginCapture", "cudaEventElapsedTime"} & set(gpu.calls)


@pytest.mark.parametrize(("device_milliseconds", "captured"), [(1.9, True), (2.1, False)])
def test_auto_captures_what_waits_for_its_launches(
    launches: Callable[..., Launches], network: Network, gpu: CudaDouble, device_milliseconds: float, captured: bool
) -> None:
    """A millisecond on the host; captured from half of the device's time on."""
    network.host, gpu.elapsed = 1e-3, device_milliseconds
    run(launches("auto"), network, "aaaaaaa")
    assert network.launched == (3 if captured else 7)  # one plain, one timed, one captured
    assert gpu.calls.count("cudaEventElapsedTime") == 1


def test_auto_does_not_wait_for_its_timer(launches: Callable[..., Launches], network: Network, gpu: CudaDouble) -> None:
    timed = launches("auto")
    for _ in range(5):
        assert timed.launch("a", network.stream, network.plain("a"))
    assert network.ran == []
    assert network.launched == 5
    gpu.cudaStreamSynchronize(network.stream)
    assert timed.launch("a", network.stream, network.plain("a"))
    assert "cudaGraphLaunch" in gpu.calls


def test_forgotten_keys_are_new(launches: Callable[..., Launches], network: Network, gpu: CudaDouble) -> None:
    captured = launches(True)
    run(captured, network, "aaa")
    captured.forget()
    assert gpu.leftovers()["graphs"] == 0
    network.ran.clear()
    run(captured, network, "aaa")
    assert network.launched == 4


def test_the_oldest_makes_room(launches: Callable[..., Launches], network: Network, gpu: CudaDouble) -> None:
    captured, keys = launches(True), "abcdefghijkl"
    assert len(keys) > KEPT
    for key in keys:
        for _ in range(2):
            captured.launch(key, network.stream, network.plain(key))  # pending, where one must go
    assert gpu.leftovers()["graphs"] == KEPT
    gpu.cudaStreamSynchronize(network.stream)
    assert network.ran == [key for key in keys for _ in range(2)]


@pytest.mark.parametrize("fault", ["begin", "refuses", "instantiate", "allocates"])
def test_a_capture_that_fails_is_a_plain_launch_and_said_once(
    launches: Callable[..., Launches], network: Network, gpu: CudaDouble, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    captured = launches(True)
    run(captured, network, "a")
    failing = {"begin": "cudaStreamBeginCapture", "instantiate": "cudaGraphInstantiate"}
    if fault in failing:
        gpu.failures[failing[fault]] = cudaError_t.cudaErrorInvalidValue
    plain = network.plain("a")

    def launch() -> bool:
        if gpu.capturing(network.stream) and fault == "allocates":
            gpu.cudaMalloc(8)
        return plain() and not (gpu.capturing(network.stream) and fault == "refuses")

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert captured.launch("a", network.stream, launch)
    gpu.cudaStreamSynchronize(network.stream)
    assert network.ran == ["a"] * 4
    (record,) = caplog.records
    assert "no CUDA graph is used, as capturing one failed" in record.getMessage()


def test_the_legacy_stream_is_not_captured(launches: Callable[..., Launches], network: Network) -> None:
    captured, network.stream = launches(True), 1
    run(captured, network, "aaaa")
    assert network.launched == 4


@pytest.mark.parametrize("graphs", ["on", 1, None])
def test_what_cuda_graphs_may_be(graphs: object) -> None:
    with pytest.raises(BackendError, match="cuda_graphs is .*; expected 'auto', True or False"):
        check_cuda_graphs(graphs)
    for allowed in ("auto", True, False):
        check_cuda_graphs(allowed)
