"""Whole videos on TensorRT, as far as a machine without a GPU can show it: through the doubles, which run the graphs on
ONNX Runtime, every frame has the bits that it has there. What moves data, or forgets to wait, shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.plans import write_plan

import telecine
from telecine.bundle import Bundle
from telecine.pipeline import Pipeline

pytest.importorskip("onnxruntime")

SMALL: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2, "seed": 0,
    "decode_timestep": 0.05, "decode_noise_scale": 0.025,
}  # fmt: skip
HOST_MATH = ("denoise_step", "decoder_latents", "uint8_frames")
PLAIN = {"": (1, 4, 4096)}
# Two profiles for the transformer: a small one and a large one, so that a run may change between them.
TWO = ({"tokens": (1, 12, 16)}, {"tokens": (8, 64, 4096)})


@pytest.fixture(scope="module")
def reference(tiny_bundle_on_main_graphs: Path) -> Iterator[Pipeline]:
    with telecine.load(tiny_bundle_on_main_graphs, backend="onnxruntime") as pipe:
        yield pipe


def build(bundle: Path, engines: Path, **options: Any) -> Path:
    """Plans of every network; host math stays on the host, which has the same bits."""
    opened = Bundle.open(bundle)
    for component in opened.manifest.components:
        if component in HOST_MATH:
            continue
        profiles = TWO if component == "transformer" else (PLAIN,)
        write_plan(opened, component, engines=engines, profiles=profiles, **options)
    return engines


@pytest.mark.parametrize(
    ("library", "version"),
    [("tensorrt", "10.9.0.34"), ("tensorrt", "11.4.0.106"), ("tensorrt_rtx", "1.7.1.116")],
)
def test_every_librarys_frames_are_onnx_runtimes(
    tiny_bundle: Path,
    tmp_path: Path,
    tensorrt: Callable[..., Any],
    reference: Pipeline,
    library: str,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensorrt(library, version)
    build(tiny_bundle, tmp_path / "engines", library=library, version=version)
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path / "engines") as pipe:
        np.testing.assert_array_equal(pipe.generate(**SMALL).frames, reference.generate(**SMALL).frames)


def test_the_lean_runtime_opens_version_compatible_plans(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], reference: Pipeline
) -> None:
    tensorrt("tensorrt_lean")
    build(tiny_bundle, tmp_path, version="11.2.0.1", version_compatible=True)
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        np.testing.assert_array_equal(pipe.generate(**SMALL).frames, reference.generate(**SMALL).frames)


CHANGES: dict[str, dict[str, Any]] = {
    "wide": {"height": 32, "width": 160, "num_frames": 17},
    "one-latent": {"height": 32, "width": 32, "num_frames": 1},
    "batch-2": {"prompt": ["a red ball", "a blue cube"]},
    "no-guidance": {"guidance_scale": 1.0},
    "guidance": {"guidance_scale": 5.0, "guidance_rescale": 0.7, "negative_prompt": "blurry"},
    "stg": {"stg_scale": 1.0, "stg_blocks": [1]},
    "latents": {"output_type": "latent"},
}


def test_one_pipeline_makes_every_request(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], reference: Pipeline
) -> None:
    """One after the other, and back again: buffers grow, profiles change, nothing of a run is left in the next."""
    tensorrt()
    build(tiny_bundle, tmp_path)
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        for name in (*CHANGES, "one-latent", "batch-2"):
            got, expected = (each.generate(**SMALL | CHANGES[name]) for each in (pipe, reference))
            for kind in ("frames", "latents"):
                np.testing.assert_array_equal(getattr(got, kind), getattr(expected, kind), err_msg=name)


def test_image_to_video_uses_the_encoder_too(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], reference: Pipeline
) -> None:
    tensorrt()
    build(tiny_bundle, tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        got, expected = (each.generate(**SMALL, image=image).frames for each in (pipe, reference))
    np.testing.assert_array_equal(got, expected)


def test_clones_share_an_engine_and_run_in_threads(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble, reference: Pipeline
) -> None:
    module = tensorrt()
    build(tiny_bundle, tmp_path)
    opened: list[object] = []
    real = module.Runtime.deserialize_cuda_engine
    module.Runtime.deserialize_cuda_engine = lambda self, plan: opened.append(0) or real(self, plan)
    expected = [reference.generate(**SMALL | {"seed": seed}).frames for seed in range(2)]
    got: dict[int, Any] = {}
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        pipes = [pipe, pipe.clone()]

        def work(seed: int) -> None:
            got[seed] = pipes[seed].generate(**SMALL | {"seed": seed}).frames

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pipes[1].close()
    for seed in range(2):
        np.testing.assert_array_equal(got[seed], expected[seed])
    assert len(opened) == 3  # text encoder, transformer, decoder: once for both


def test_steps_allocate_nothing(
    tiny_bundle: Path, tmp_path: Path, tensorrt: Callable[..., Any], gpu: CudaDouble
) -> None:
    """A second run of a size asks CUDA for no memory, and its steps tell TensorRT of no shape."""
    tensorrt()
    build(tiny_bundle, tmp_path)
    with telecine.load(tiny_bundle, backend="tensorrt", engines=tmp_path) as pipe:
        pipe.generate(**SMALL)
        gpu.calls.clear()
        pipe.generate(**SMALL)
        assert not {"cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost"} & set(gpu.calls)
