"""What `telecine build` writes, sessions run: both on one double of TensorRT, which runs graphs on ONNX Runtime.

Frames may differ by 5e-6 of [0, 1]: steps are `denoise_step`'s, which adds in another order than NumPy [7e-7].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import telecine
from telecine.backends.tensorrt.backend import TensorRtBackend
from telecine.bundle import Bundle
from telecine.errors import EngineError
from telecine_engines.build import BuildRequest, build_engines
from telecine_engines.options import BuildOptions

pytest.importorskip("onnxruntime")

TOLERANCE = 5e-6
REQUEST: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2, "seed": 0,
    "decode_timestep": 0.05, "decode_noise_scale": 0.025,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"strip_plan": True}, {"weight_streaming": True}, {"version_compatible": True, "refit": True}],
    ids=lambda options: ",".join(options) or "plain",
)
def test_frames_are_onnx_runtimes(
    tiny_bundle: Path,
    tiny_bundle_on_main_graphs: Path,
    tmp_path: Path,
    tensorrt: Callable[..., Any],
    options: dict[str, bool],
) -> None:
    tensorrt()
    request = BuildRequest(
        bundle=Bundle.open(tiny_bundle),
        targets=("trt-sm89",),
        workloads=("96x64x9",),
        options=BuildOptions(**options),
        engines=tmp_path,
    )
    build_engines(request)
    with telecine.load(tiny_bundle_on_main_graphs, backend="onnxruntime") as pipe:
        expected = pipe.generate(**REQUEST).frames
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        np.testing.assert_allclose(pipe.generate(**REQUEST).frames, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("style", ["5b", "5b-I2V"])
def test_cogvideox(cogvideox: Callable[..., Any], style: str, tmp_path: Path, tensorrt: Callable[..., Any]) -> None:
    """Its workloads' ranges hold what runs feed, host math too; bytes are those of the floats."""
    tensorrt()
    _, bundle = cogvideox(style)
    request: dict[str, Any] = {"prompt": "a red ball", "num_inference_steps": 2, "seed": 0}
    workload = "80x48x9"
    if style == "5b-I2V":
        request["image"], workload = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8), "96x64x9"
    width, height, request["num_frames"] = map(int, workload.split("x"))
    request |= {"width": width, "height": height}
    build_engines(
        BuildRequest(bundle=Bundle.open(bundle), targets=("trt-sm89",), workloads=(workload,), engines=tmp_path)
    )
    with telecine.load(bundle, device="cpu") as pipe:
        expected = pipe.generate(**request).frames
    with telecine.load(bundle, backend="tensorrt", engines=tmp_path) as pipe:
        floats = pipe.generate(**request).frames
        # Guidance of 6 magnifies more, and this decoder normalises by what it is given [2e-5].
        np.testing.assert_allclose(floats, expected, rtol=0, atol=1e-4)
        got = pipe.generate(**request, output_type="uint8").frames
    np.testing.assert_array_equal(got, np.rint(floats * np.float32(255)))


def test_videos_larger_than_the_vae_engines_are_tiled(
    tiny_bundle: Path, tiny_bundle_on_main_graphs: Path, tmp_path: Path, tensorrt: Callable[..., Any]
) -> None:
    """In the tiles that fit both its engines; those of ONNX Runtime are the same when they are asked for."""
    tensorrt()
    bundle = Bundle.open(tiny_bundle)
    build_engines(
        BuildRequest(
            bundle=bundle, targets=("trt-sm89",), workloads=("320x32x9",), vae_tile="256x256x9", engines=tmp_path
        )
    )
    image = np.random.default_rng(0).integers(0, 256, (32, 320, 3), np.uint8)
    request = REQUEST | {"width": 320, "height": 32, "image": image}
    with telecine.load(tiny_bundle_on_main_graphs, backend="onnxruntime") as pipe:
        expected = pipe.generate(**request, tiling="seamless", tile_size=256).frames
        untiled = pipe.generate(**request).frames
    assert np.abs(expected - untiled).max() > 10 * TOLERANCE
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        np.testing.assert_allclose(pipe.generate(**request).frames, expected, rtol=0, atol=TOLERANCE)
        for options in ({"tiling": "off"}, {"tiling": "diffusers"}, {"tile_size": 288}):
            with pytest.raises(EngineError, match="takes 256x32x9 at once, and the video is 320x32x9"):
                pipe.generate(**request, **options)
        # What decodes nothing asks for no decoder.
        assert pipe.generate(**REQUEST | {"width": 320, "height": 32}, tiling="off", output_type="latent").latents.any()


def test_a_size_without_an_engine_is_refused_before_the_text_is_encoded(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the workload to build; what is refused loads nothing."""
    tensorrt()
    bundle = Bundle.open(tiny_bundle)
    build_engines(BuildRequest(bundle=bundle, targets=("trt-sm89",), workloads=("96x64x9",), engines=tmp_path))
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        monkeypatch.setattr(TensorRtBackend, "load", lambda *_: pytest.fail("a network was loaded"))
        for changes, workload in (({"width": 320}, "320x64x9@b1"), ({"num_videos_per_prompt": 9}, "96x64x9@b9")):
            with pytest.raises(
                EngineError, match=f"no engine was built; .*telecine build BUNDLE --workload {workload}"
            ):
                pipe.generate(**REQUEST | changes)
