"""Which backend runs a network, and what `load` and the command line refuse."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from doubles.cuda_runtime import CudaDouble
from doubles.install import install_cuda
from doubles.plans import write_plan

import telecine
from telecine.backends.cuda.device import Device
from telecine.backends.cuda.stream import Stream
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle
from telecine.cli import main
from telecine.errors import BackendError, EngineError
from telecine.pipeline import Pipeline

pytest.importorskip("onnxruntime")

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 2, "seed": 0}


@pytest.fixture
def engines(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with a plan of the text encoder alone."""
    write_plan(Bundle.open(tiny_bundle), "text_encoder", engines=tmp_path)
    return tmp_path


def kinds(pipe: Pipeline) -> list[type]:
    return [type(pipe._models.session(component)) for component in ("text_encoder", "transformer")]


def test_auto_takes_an_engine_where_one_fits(tiny_bundle: Path, engines: Path, tensorrt: Callable[..., Any]) -> None:
    tensorrt()
    with telecine.load(tiny_bundle, engines=engines) as pipe:
        assert kinds(pipe) == [TensorRtSession, OnnxRuntimeSession]
        pipe.generate("a", **SMALL)


def test_auto_finds_the_bundles_own_engines(tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
    tensorrt()
    (tmp_path / "bundle").mkdir()
    for entry in tiny_bundle.iterdir():
        (tmp_path / "bundle" / entry.name).symlink_to(entry)
    write_plan(Bundle.open(tmp_path / "bundle"), "transformer")
    with telecine.load(tmp_path / "bundle") as pipe:
        assert kinds(pipe) == [OnnxRuntimeSession, TensorRtSession]


@pytest.mark.parametrize("lack", ["gpu", "driver", "library", "cuda-bindings", "fit"])
def test_auto_says_why_an_engine_is_not_taken(
    tiny_bundle: Path, engines: Path, tensorrt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, lack: str,
) -> None:  # fmt: skip
    tensorrt()
    words = {"gpu": "no NVIDIA GPU", "driver": "no NVIDIA driver", "library": "tensorrt cannot be imported"}
    words |= {"cuda-bindings": "cuda-bindings cannot be imported", "fit": "is for compute capability"}
    if lack in ("gpu", "driver", "fit"):
        capabilities = {"gpu": (), "driver": ("8.9",), "fit": ("9.0",)}[lack]
        install_cuda(monkeypatch, CudaDouble(capabilities=capabilities, driver=0 if lack == "driver" else 13000))
    else:
        monkeypatch.setitem(sys.modules, "tensorrt" if lack == "library" else "cuda.bindings", None)
    with caplog.at_level(logging.WARNING), telecine.load(tiny_bundle, engines=engines) as pipe:
        assert kinds(pipe) == [OnnxRuntimeSession, OnnxRuntimeSession]
    (record,) = [record for record in caplog.records if record.name == "telecine.backends.choice"]
    assert "text_encoder runs on ONNX Runtime: " in record.getMessage()
    assert words[lack] in record.getMessage()


def test_auto_asks_nobody_where_there_are_no_engines(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    with telecine.load(tiny_bundle) as pipe:
        assert kinds(pipe) == [OnnxRuntimeSession, OnnxRuntimeSession]


def test_auto_does_not_hide_a_damaged_engine(tiny_bundle: Path, engines: Path, tensorrt: Callable[..., Any]) -> None:
    tensorrt()
    (plan,) = engines.rglob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    with telecine.load(tiny_bundle, engines=engines) as pipe, pytest.raises(EngineError, match="bytes; expected"):
        pipe.generate("a", **SMALL)


def test_on_the_cpu_engines_are_left_alone(tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
    tensorrt()
    with telecine.load(tiny_bundle, device="cpu") as pipe:
        assert kinds(pipe) == [OnnxRuntimeSession, OnnxRuntimeSession]


def test_tensorrt_wants_an_engine_for_what_it_runs(
    tiny_bundle: Path, engines: Path, tensorrt: Callable[..., Any]
) -> None:
    tensorrt()
    words = r"has no engine for transformer \(main\).*telecine build BUNDLE"
    with (
        telecine.load(tiny_bundle, backend="tensorrt", engines=engines) as pipe,
        pytest.raises(EngineError, match=words),
    ):
        pipe.generate("a", **SMALL)


def test_all_networks_and_clones_run_on_the_callers_stream(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble
) -> None:
    tensorrt()
    bundle = Bundle.open(tiny_bundle)
    for component in ("text_encoder", "transformer", "vae_decoder"):
        write_plan(bundle, component, engines=tmp_path)
    mine = Stream(Device.open("cuda"))
    before = set(gpu.streams)
    with (
        telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as usual,
        telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path, stream=mine.handle) as pipe,
        pipe.clone() as clone,
    ):
        expected = pipe.generate("a", **SMALL).frames
        assert expected is not None
        np.testing.assert_array_equal(expected, clone.generate("a", **SMALL).frames)
        assert set(gpu.streams) == before  # none of their own
        assert gpu.streams[mine.handle].issued > 0
        np.testing.assert_array_equal(expected, usual.generate("a", **SMALL).frames)
        assert len(gpu.streams) == len(before) + 3
    mine.close()  # which nobody else did


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backend": "cuda"}, BackendError, "backend 'cuda'; expected one of auto, onnxruntime, tensorrt"),
        (
            {"backend": "tensorrt", "device": "cpu"},
            BackendError,
            "device 'cpu' with backend 'tensorrt'",
        ),
        ({"backend": "tensorrt", "device": "cuda:1"}, BackendError, "device cuda:1; expected one of 1"),
        ({"backend": "tensorrt", "options": OnnxRuntimeOptions()}, BackendError, "options of ONNX Runtime"),
        ({"backend": "onnxruntime", "engines": "."}, BackendError, "engines with backend 'onnxruntime'"),
        ({"device": "cpu", "engines": "."}, BackendError, "engines with backend 'auto' and device 'cpu'"),
        ({"cuda_graphs": "on"}, BackendError, "cuda_graphs is 'on'; expected 'auto', True or False"),
        ({"device": "cpu", "cuda_graphs": True}, BackendError, "cuda_graphs=True with backend 'auto' and device 'cpu'"),
        ({"backend": "onnxruntime", "cuda_graphs": True}, BackendError, "cuda_graphs=True.*Leave cuda_graphs out"),
        ({"engines": "no/such/folder"}, EngineError, "no/such/folder is not a folder"),
        ({"backend": "tensorrt"}, EngineError, "engines is not a folder; .*telecine build BUNDLE"),
        ({"stream": 0, "device": "cuda"}, BackendError, "stream is 0; expected the handle of a CUDA stream"),
        ({"stream": "1", "device": "cuda"}, BackendError, "stream is '1'"),
        ({"stream": 1, "device": "cpu"}, BackendError, "the CPU has no streams"),
        ({"stream": 1}, BackendError, "a CUDA stream with backend 'auto' and device 'auto'"),
        (
            {"stream": 1, "device": "cuda", "options": OnnxRuntimeOptions(providers=("CPUExecutionProvider",))},
            BackendError,
            "a CUDA stream with providers",
        ),
    ],
)
def test_what_load_refuses(
    tiny_bundle: Path, tensorrt: Callable[..., Any], tmp_path: Path, options: dict[str, Any], error: type, words: str
) -> None:
    tensorrt()
    if "device" in options and options.get("backend") == "tensorrt":
        options = options | {"engines": tmp_path}
    with pytest.raises(error, match=words):
        telecine.load(tiny_bundle, **options)


class TestCommandLine:
    def run(self, bundle: Path, *arguments: object) -> Any:
        size = ["--height", "32", "--width", "32", "--num-frames", "1", "--num-inference-steps", "2"]
        return CliRunner().invoke(main, ["generate", str(bundle), "--prompt", "a", *size, *map(str, arguments)])

    def test_engines(self, tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
        tensorrt()
        bundle = Bundle.open(tiny_bundle)
        for component in ("text_encoder", "transformer", "vae_decoder"):
            write_plan(bundle, component, engines=tmp_path / "engines")
        output = tmp_path / "frame" / "%05d.png"
        done = self.run(tiny_bundle, "-o", output, "--backend", "tensorrt", "--engines", tmp_path / "engines")
        assert done.exit_code == 0, done.output
        assert (tmp_path / "frame" / "00000.png").exists()

    def test_no_engines_is_an_error_with_the_command(
        self, tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any]
    ) -> None:
        tensorrt()
        done = self.run(tiny_bundle, "-o", tmp_path / "a.gif", "--backend", "tensorrt")
        assert (done.exit_code, done.stdout) == (1, "")
        assert "telecine build BUNDLE" in done.stderr

    def test_options_of_onnxruntime(self, tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
        tensorrt()
        arguments = ("-o", tmp_path / "a.gif", "--backend", "tensorrt", "--engines", tmp_path, "--threads", 1)
        assert "options of ONNX Runtime with backend 'tensorrt'" in self.run(tiny_bundle, *arguments).stderr
