"""Whole runs whose steps stay on the device, through the doubles: NumPy's latents, and no copy while they run.

Tolerance 2e-5 of latents around 1: `denoise_step` adds the same float32 numbers in another order, over three steps that
guidance magnifies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble, cudaMemcpyKind
from doubles.plans import write_plan

import telecine
from telecine.bundle import Bundle
from telecine.errors import Cancelled
from telecine.families import bound
from telecine.families.device_steps import DeviceSteps

pytest.importorskip("onnxruntime")

REQUEST: dict[str, Any] = {
    "prompt": "a red ball", "negative_prompt": "blurry", "height": 64, "width": 96, "num_frames": 9,
    "num_inference_steps": 3, "seed": 0, "output_type": "latent",
}  # fmt: skip
TWO = {"prompt": ["a red ball", "a blue cube rolls away"], "seed": [3, 8]}
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
CONDITIONS = [
    telecine.Condition(image=IMAGE),
    telecine.Condition(image=IMAGE, frame_index=8, strength=0.6),
]
LISTS = {"guidance_scale": [3.0, 1.0, 3.0], "stg_scale": [1.0, 1.0, 0.0], "stg_blocks": [1]}
REQUESTS: dict[str, dict[str, Any]] = {
    "text": {},
    "no guidance": {"guidance_scale": 1.0},
    "rescaled": {"guidance_scale": 5.0, "guidance_rescale": 0.7},
    "projected": {"cfg_star": True},
    "perturbed": {"stg_scale": 1.0, "stg_blocks": [1], "stg_mode": "transformer_block", **TWO},
    "other passes at every step": LISTS,
    "first frame": {"image": IMAGE, **TWO},
    "conditions": {"conditions": CONDITIONS, "image_cond_noise_scale": 0.15, **TWO},
}


def open_on_doubles(bundle: Path, engines: Path, but: Collection[str] = ()) -> Any:
    """A pipeline on the doubles, with plans of every graph but those of some components."""
    opened = Bundle.open(bundle)
    for component, part in opened.manifest.components.items():
        for role in part.graphs:
            if component not in but:
                write_plan(opened, component, role, engines=engines)
    return telecine.load(bundle, backend="tensorrt", engines=engines)


@pytest.fixture(scope="module")
def reference(tiny_bundle_on_main_graphs: Path) -> Iterator[Any]:
    with telecine.load(tiny_bundle_on_main_graphs, backend="onnxruntime") as pipe:
        yield pipe


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were done on the device."""
    seen: list[int] = []
    step = DeviceSteps.step
    monkeypatch.setattr(DeviceSteps, "step", lambda self, index: seen.append(index) or step(self, index))
    return seen


def assert_near(got: Any, expected: Any, name: str = "") -> None:
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5, err_msg=name)


def test_every_request_gives_numpys_latents(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], reference: Any, stepped: list[int]
) -> None:
    """One after the other: nothing of a run is left in the next."""
    tensorrt()
    with open_on_doubles(tiny_bundle, tmp_path) as pipe:
        for name, change in (*REQUESTS.items(), ("text", {})):
            stepped.clear()
            assert_near(pipe.generate(**REQUEST | change).latents, reference.generate(**REQUEST | change).latents, name)
            assert stepped == [0, 1, 2], name


def test_stochastic_steps_add_the_same_noise(
    tiny_bundle: Path, edited_bundle: Callable[..., Path], tmp_path: Path, tensorrt: Callable[..., Any],
    stepped: list[int],
) -> None:  # fmt: skip
    tensorrt()
    scheduler = Bundle.open(tiny_bundle).manifest.host["scheduler"] | {"stochastic_sampling": True}
    bundle = edited_bundle(tiny_bundle, host={"scheduler": scheduler})
    with telecine.load(bundle, device="cpu") as host, open_on_doubles(bundle, tmp_path / "engines") as pipe:
        for name in ("text", "first frame", "conditions"):
            request = REQUEST | REQUESTS[name]
            assert_near(pipe.generate(**request).latents, host.generate(**request).latents, name)
    assert stepped == [0, 1, 2] * 3


@pytest.mark.parametrize("scheduler", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
@pytest.mark.parametrize("style", ["5b", "5b-I2V"])
def test_cogvideox(
    cogvideox: Callable[..., Any], style: str, scheduler: str, edited_bundle: Callable[..., Path], tmp_path: Path,
    tensorrt: Callable[..., Any], stepped: list[int],
) -> None:  # fmt: skip
    tensorrt()
    _, exported = cogvideox(style)
    config = Bundle.open(exported).manifest.host["scheduler"] | {"_class_name": scheduler}
    bundle = edited_bundle(exported, host={"scheduler": config})
    request = REQUEST | TWO | ({"image": IMAGE} if style == "5b-I2V" else {"width": 80, "use_dynamic_cfg": True})
    with telecine.load(bundle, device="cpu") as host, open_on_doubles(bundle, tmp_path / "engines") as pipe:
        assert_near(pipe.generate(**request).latents, host.generate(**request).latents)
    assert stepped == [0, 1, 2]


def test_steps_copy_nothing_from_or_to_the_host(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do they wait for the device, allocate, or tell it of an address that has changed."""
    tensorrt()
    kinds: list[int] = []
    copy = CudaDouble.cudaMemcpyAsync
    monkeypatch.setattr(
        CudaDouble, "cudaMemcpyAsync", lambda *arguments: kinds.append(arguments[4]) or copy(*arguments)
    )
    step = DeviceSteps.step
    calls: list[list[str]] = []

    def watched(self: DeviceSteps, index: int) -> None:
        kinds.clear()
        gpu.calls.clear()
        step(self, index)
        assert set(kinds) == {cudaMemcpyKind.cudaMemcpyDeviceToDevice}
        calls.append(list(gpu.calls))

    monkeypatch.setattr(DeviceSteps, "step", watched)
    with open_on_doubles(tiny_bundle, tmp_path) as pipe:
        pipe.generate(**REQUEST | {"image": IMAGE})
    assert len(calls) == 3
    for made in calls[1:]:
        waits = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMalloc", "cudaPointerGetAttributes"}
        assert not waits & set(made)


def test_a_second_run_allocates_nothing(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble
) -> None:
    """Nor do addresses change, for which networks may have captured their launches."""
    tensorrt()
    with open_on_doubles(tiny_bundle, tmp_path) as pipe:
        pipe.generate(**REQUEST)
        gpu.calls.clear()
        pipe.generate(**REQUEST)
        assert not {"cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost"} & set(gpu.calls)


def test_callbacks_see_the_latents_and_may_replace_them(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], reference: Any
) -> None:
    tensorrt()
    seen: dict[str, list[np.ndarray]] = {"host": [], "device": []}

    def callback(where: str) -> Callable[..., Any]:
        def see(step: int, steps: int, sigma: float, latents: np.ndarray) -> Any:
            seen[where].append(latents.copy())
            return latents * np.float32(0.5) if step == 0 else None

        return see

    with open_on_doubles(tiny_bundle, tmp_path) as pipe:
        expected = reference.generate(**REQUEST, callback=callback("host")).latents
        assert_near(pipe.generate(**REQUEST, callback=callback("device")).latents, expected)
        for got, wanted in zip(seen["device"], seen["host"], strict=True):
            assert_near(got, wanted)
        with pytest.raises(Cancelled, match="after step 1 of 3"):
            pipe.generate(**REQUEST, callback=lambda *_: False)
        assert_near(pipe.generate(**REQUEST).latents, reference.generate(**REQUEST).latents)


@pytest.mark.parametrize("lacks", ["bundle", "engines"])
def test_older_bundles_and_engines_step_on_the_host(
    lacks: str, tiny_bundle: Path, edited_bundle: Callable[..., Path], tmp_path: Path, tensorrt: Callable[..., Any],
    reference: Any, stepped: list[int], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    tensorrt()
    helpers = ("denoise_step", "decoder_latents", "uint8_frames")
    bundle = tiny_bundle
    if lacks == "bundle":
        parts = Bundle.open(tiny_bundle).manifest.components
        older = {name: part for name, part in parts.items() if name not in helpers}
        bundle = edited_bundle(tiny_bundle, components=older)
    request = REQUEST | {"output_type": "uint8"}
    with open_on_doubles(bundle, tmp_path / "engines", but=helpers) as pipe:
        for _ in range(2):
            np.testing.assert_array_equal(pipe.generate(**request).frames, reference.generate(**request).frames)
    assert stepped == []
    told = [record.getMessage() for record in caplog.records if "in NumPy on the host" in record.getMessage()]
    assert [each.split()[0] for each in told] == (["denoise_step", "uint8_frames"] if lacks == "engines" else [])


def test_large_passes_may_run_one_after_the_other(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a session says that a batch does not pay. A pass has 16 tokens, or its part would not be aligned."""
    from telecine.backends.tensorrt.session import TensorRtSession

    tensorrt()
    monkeypatch.setattr(bound, "ONE_BY_ONE", 1)
    monkeypatch.setattr(TensorRtSession, "batch_pays", False)
    request = REQUEST | LISTS | {"width": 128}
    with open_on_doubles(tiny_bundle, tmp_path) as pipe:
        assert_near(pipe.generate(**request).latents, reference.generate(**request).latents)
