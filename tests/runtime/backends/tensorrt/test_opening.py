"""What is refused before a plan is deserialised. In every test the plan itself would run: only the check says no."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.install import install_cuda, install_tensorrt
from doubles.plans import write_plan

from telecine.backends.tensorrt.backend import TensorRtBackend
from telecine.bundle import Bundle
from telecine.engine import sidecar_path
from telecine.errors import BackendError, EngineError

pytest.importorskip("onnxruntime")

OTHER = "0" * 64


@pytest.fixture
def never_deserialised(tensorrt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, plan: object) -> None:
        pytest.fail("the plan was deserialised before it was refused")

    monkeypatch.setattr(tensorrt().Runtime, "deserialize_cuda_engine", fail)


def load(bundle: Bundle, engines: Path, device: str = "auto") -> None:
    TensorRtBackend(bundle, device=device, engines=engines).load("text_encoder", "main").close()


def test_the_plan_of_these_tests_runs(bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
    tensorrt()
    write_plan(bundle, "text_encoder", engines=tmp_path)
    load(bundle, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"graph_sha256": OTHER},
            r"built from another text_encoder/main.onnx \(the graph's SHA-256 is 000000000000...\).*telecine build",
        ),
        (
            {"weights_sha256": OTHER},
            r"built from another text_encoder/weights.bin \(the weights's SHA-256.*telecine build",
        ),
        (
            {"component": "transformer"},
            r"text_encoder.main.plan is of transformer \(main\); expected text_encoder \(main\)",
        ),
        ({"role": "first"}, r"is of text_encoder \(first\)"),
        ({"platform": "linux-riscv64"}, "is for linux-riscv64; expected linux-.* on this machine"),
        (
            {"compute_capabilities": ("9.0",)},
            "is for compute capability 9.0; expected 8.9, of cuda:0. Run: telecine build BUNDLE --target trt-sm89",
        ),
        (
            {"compute_capabilities": ("8.6",), "hardware_compatibility": "SAME_COMPUTE_CAPABILITY"},
            "compute capability 8.6",
        ),
        (
            {"library_version": "11.4.0.107"},
            r"tensorrt is version 11.4.0.106; expected tensorrt 11.4.0.107.*==11.4.0.107",
        ),
        ({"plan_size": 7}, "has [0-9]+ bytes; expected 7. Run: telecine build BUNDLE, or copy the engines again"),
        ({"plan_sha256": OTHER}, "has changed: its SHA-256 is another; expected 0000"),
        ({"format": 2}, "is not of format 1"),
    ],
)
def test_a_sidecar_that_does_not_fit(
    bundle: Bundle, tmp_path: Path, never_deserialised: None, changes: dict[str, Any], words: str
) -> None:
    path = write_plan(bundle, "text_encoder", engines=tmp_path)
    content = json.loads(sidecar_path(path).read_text())
    sidecar_path(path).write_text(json.dumps(content | changes))
    with pytest.raises(EngineError, match=words):
        load(bundle, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "longer", "another byte", "empty"])
def test_a_damaged_plan(bundle: Bundle, tmp_path: Path, never_deserialised: None, damage: str) -> None:
    path = write_plan(bundle, "text_encoder", engines=tmp_path)
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[:-1], "longer": content + b" ", "another byte": content[:-1] + b"]", "empty": b""}[damage]
    )
    words = "its SHA-256 is another" if damage == "another byte" else "has [0-9]+ bytes"
    with pytest.raises(EngineError, match=words):
        load(bundle, tmp_path)


def test_no_sidecar(bundle: Bundle, tmp_path: Path, never_deserialised: None) -> None:
    sidecar_path(write_plan(bundle, "text_encoder", engines=tmp_path)).unlink()
    with pytest.raises(EngineError, match=r"text_encoder.main.json cannot be read.* Run: telecine build BUNDLE"):
        load(bundle, tmp_path)


def test_no_plan(bundle: Bundle, tmp_path: Path, never_deserialised: None) -> None:
    write_plan(bundle, "transformer", engines=tmp_path)
    with pytest.raises(EngineError, match=r"has no engine for text_encoder \(main\).*telecine build.*--engines"):
        load(bundle, tmp_path)


def test_every_plan_that_does_not_fit_is_told(bundle: Bundle, tmp_path: Path, never_deserialised: None) -> None:
    write_plan(bundle, "text_encoder", engines=tmp_path, target="trt-sm90", compute_capabilities=("9.0",))
    write_plan(bundle, "text_encoder", engines=tmp_path, target="trt-sm89", graph_sha256=OTHER)
    with pytest.raises(EngineError, match="none of 2 engines .* fits: .*trt-sm") as caught:
        load(bundle, tmp_path)
    assert "compute capability 9.0" in str(caught.value)
    assert "built from another" in str(caught.value)


def test_the_newest_plan_that_fits_is_taken(bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
    tensorrt()
    for age, (key, changes) in enumerate({"newest": {"graph_sha256": OTHER}, "newer": {}, "oldest": {}}.items()):
        path = write_plan(bundle, "text_encoder", engines=tmp_path, key=key, **changes)
        os.utime(path, (10**9 - age, 10**9 - age))
    plan = TensorRtBackend(bundle, device="auto", engines=tmp_path).find("text_encoder", "main")
    assert plan.sidecar.key == "newer"


class TestVersions:
    @pytest.mark.parametrize(
        ("library", "here", "built", "opens"),
        [
            ("tensorrt", "11.4.0.106", "11.4.0.106", True),
            ("tensorrt", "11.4.0.106", "11.2.0.1", False),  # without the lean package
            ("tensorrt", "11.4.0.106", "11.4.1.0", False),  # newer than this
            ("tensorrt", "11.4.0.106", "10.9.0.34", False),  # of another major version
            ("tensorrt_lean", "11.4.0.106", "11.2.0.1", True),
            ("tensorrt_lean", "10.9.0.34", "11.2.0.1", False),
            ("tensorrt_lean", "11.4.0.106", "10.9.0.34", False),
        ],
    )
    def test_version_compatible_plans(
        self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], library: str, here: str, built: str,
        opens: bool,
    ) -> None:  # fmt: skip
        tensorrt(library, here)
        write_plan(bundle, "text_encoder", engines=tmp_path, version=built, version_compatible=True)
        if opens:
            load(bundle, tmp_path)
        else:
            with pytest.raises(
                EngineError, match=f"{library} is version {here}.*; expected tensorrt {built} or newer below"
            ):
                load(bundle, tmp_path)

    def test_the_lean_package_comes_first(
        self, bundle: Bundle, tmp_path: Path, gpu: CudaDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_plan(bundle, "text_encoder", engines=tmp_path, version_compatible=True)
        for name in ("tensorrt", "tensorrt_lean"):
            install_tensorrt(monkeypatch, gpu, name)
            plan = TensorRtBackend(bundle, device="auto", engines=tmp_path).find("text_encoder", "main")
            assert plan.library.name == name

    def test_the_lean_package_opens_no_other_plans(
        self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any]
    ) -> None:
        tensorrt("tensorrt_lean")
        write_plan(bundle, "text_encoder", engines=tmp_path)
        with pytest.raises(
            EngineError,
            match=r"tensorrt cannot be imported .*pip install \"tensorrt==11.4.0.106\".*telecine\[tensorrt\]",
        ):
            load(bundle, tmp_path)

    @pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
    def test_a_package_that_is_not_installed_names_its_extra(
        self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], library: str
    ) -> None:
        tensorrt("tensorrt_rtx" if library == "tensorrt" else "tensorrt")
        write_plan(bundle, "text_encoder", engines=tmp_path, library=library)
        with pytest.raises(
            EngineError, match=rf"{library} cannot be imported.*telecine\[{library.replace('_', '-')}\]"
        ):
            load(bundle, tmp_path)


class TestGpus:
    def test_ampere_and_newer(
        self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble
    ) -> None:
        tensorrt()
        write_plan(
            bundle, "text_encoder", engines=tmp_path, capabilities=("8.9", "12.0", "7.5"),
            compute_capabilities=("8.0",), hardware_compatibility="AMPERE_PLUS",
        )  # fmt: skip
        for capability in ("8.9", "12.0"):
            gpu.capabilities = (capability,)
            load(bundle, tmp_path)
        gpu.capabilities = ("7.5",)
        with pytest.raises(EngineError, match="is for compute capability 8.0 and newer; expected 7.5"):
            load(bundle, tmp_path)

    def test_the_device_that_is_asked_for(
        self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble
    ) -> None:
        tensorrt()
        gpu.capabilities = ("9.0", "8.9")
        write_plan(bundle, "text_encoder", engines=tmp_path)
        backend = TensorRtBackend(bundle, device="cuda:1", engines=tmp_path)
        with backend.load("text_encoder", "main") as session:
            session.run({"input_ids": np.ones((1, 8), np.int64)})
            assert {each.device for each in gpu.memory.live()} == {1}
        with pytest.raises(EngineError, match="expected 9.0, of cuda:0"):
            load(bundle, tmp_path)

    @pytest.mark.parametrize(
        ("machine", "words"),
        [
            (
                CudaDouble(driver=0),
                "there is no NVIDIA driver; expected one that CUDA can use. Install the NVIDIA driver",
            ),
            (
                CudaDouble(driver=12080, runtime=13000),
                "driver is for CUDA 12.8, the CUDA runtime is 13.0; expected a driver",
            ),
            (CudaDouble(capabilities=()), "there is no NVIDIA GPU that CUDA can use"),
        ],
        ids=["no driver", "old driver", "no gpu"],
    )
    def test_no_gpu_that_can_be_used(
        self, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: CudaDouble, words: str
    ) -> None:
        """Before TensorRT is imported: its lean runtime would take the process with it."""
        install_cuda(monkeypatch, machine)
        monkeypatch.setitem(sys.modules, "tensorrt", _Crashes("tensorrt"))
        write_plan(bundle, "text_encoder", engines=tmp_path)
        with pytest.raises(BackendError, match=words):
            load(bundle, tmp_path)

    def test_no_cuda_bindings(self, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
        write_plan(bundle, "text_encoder", engines=tmp_path)
        with pytest.raises(BackendError, match=r'cuda-bindings cannot be imported.*pip install "telecine\[tensorrt\]"'):
            load(bundle, tmp_path)

    @pytest.mark.parametrize("device", ["cuda:1", "cpu"])
    def test_another_device(self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], device: str) -> None:
        tensorrt()
        with pytest.raises(BackendError, match=f"device '?{device}"):
            load(bundle, tmp_path, device)


class _Crashes:
    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> None:
        if not name.startswith("__"):
            pytest.fail("TensorRT was touched before the driver was asked")
        raise AttributeError(name)


class TestAfterOpening:
    """A plan whose file is the builder's, but which is not what the sidecar says."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                {"inputs": [{"name": "input_ids", "dtype": "int32", "shape": ["batch", "text_length"]}]},
                "of another dtype",
            ),
            ({"outputs": []}, "has inputs and outputs input_ids, prompt_embeds and 1 profiles; expected"),
            ({"profiles": []}, "1 profiles; expected .*, 0 profiles"),
        ],
    )
    def test_other_inputs_outputs_or_profiles(
        self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], change: dict[str, Any], words: str
    ) -> None:
        tensorrt()
        path = write_plan(bundle, "text_encoder", engines=tmp_path)
        content = json.loads(sidecar_path(path).read_text())
        sidecar_path(path).write_text(json.dumps(content | change))
        with pytest.raises(EngineError, match=words):
            load(bundle, tmp_path)

    def test_an_input_on_the_host(
        self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = tensorrt()
        write_plan(bundle, "text_encoder", engines=tmp_path)
        monkeypatch.setattr(module.ICudaEngine, "get_tensor_location", lambda self, name: module.TensorLocation.HOST)
        with pytest.raises(EngineError, match="on the host: input_ids"):
            load(bundle, tmp_path)

    def test_a_plan_that_tensorrt_refuses(self, bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
        tensorrt()
        write_plan(bundle, "text_encoder", engines=tmp_path, capabilities=("9.0",), compute_capabilities=("8.9",))
        with pytest.raises(EngineError, match=r"failed deserialising .*built for other devices.*telecine build"):
            load(bundle, tmp_path)


def test_sidecars_platform_is_this_machines() -> None:
    """What the builder writes for Linux is what the check works out."""
    assert f"{platform.system()}-{platform.machine()}".lower() in ("linux-x86_64", "linux-aarch64")


def test_bundle_hashes_are_the_manifests(bundle: Bundle, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
    """A plan of this bundle does not run for the same bundle with other weights."""
    tensorrt()
    write_plan(bundle, "text_encoder", engines=tmp_path)
    part = bundle.component("text_encoder")
    weights = dataclasses.replace(part.weights, sha256=OTHER)
    components = bundle.manifest.components | {"text_encoder": dataclasses.replace(part, weights=weights)}
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, components=components))
    with pytest.raises(EngineError, match="built from another text_encoder/weights.bin"):
        load(other, tmp_path)
