"""The same request on telecine (NumPy, ONNX Runtime) and on diffusers (torch), from the same weights, at fp32.

`Pair.compare` is the one comparison of the parity suite: the parity tests expect a small difference, the mutant tests a
large one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image

import telecine
from telecine.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Bound:
    """How far two clips may be apart: anywhere, and on average."""

    maximum: float
    mean: float


# What must hold of a whole run. A grey clip hides every fault: the reference's deviation must reach MIN_SPREAD.
CONTRACT = Bound(2e-3, 2e-5)
MIN_SPREAD = 0.05
# What float32 really leaves between the two (rounding, in another order of summation): frames measure up to 5e-6 and
# 3e-7, latents (of deviation 1.7) up to 8e-6 and 1.3e-6. Wider than that, for other CPUs, and still tight enough that a
# small fault cannot hide below the contract until it grows.
ROUNDING = Bound(1e-4, 5e-6)
# A byte steps by 1/255: where rounding tips a value over the half, one level is the smallest difference there is. The
# mean then says how many tipped: 5e-6 is one value in 800 (measured: one in 20,000).
ONE_LEVEL = 1 / 255 + 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """Between telecine's clip and diffusers', in units of the range [0, 1]; `spread` is diffusers' deviation."""

    maximum: float
    mean: float
    spread: float
    is_bytes: bool

    def excess(self, bound: Bound = CONTRACT) -> float:
        """How many times the bound this is, by the worse of its two measures: above 1, parity is broken."""
        maximum = max(bound.maximum, ONE_LEVEL) if self.is_bytes else bound.maximum
        return max(self.maximum / maximum, self.mean / bound.mean)


class Pair:
    """One checkpoint on both sides. Requests use telecine's names, which are diffusers' but for `seed`."""

    def __init__(self, ours: telecine.Pipeline, theirs: Any) -> None:
        self.ours, self.theirs = ours, theirs

    def assert_same(self, **request: Any) -> None:
        """One request on both sides."""
        self.assert_close(self.run_ours(**request), self.run_theirs(**request))

    def difference(self, **request: Any) -> Difference:
        return self.compare(self.run_ours(**request), self.run_theirs(**request))

    def assert_close(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        difference = self.compare(ours, theirs)
        assert difference.spread >= MIN_SPREAD, "a flat clip proves nothing"
        assert difference.excess(CONTRACT) <= 1, f"{difference} breaks the contract"
        assert difference.excess(ROUNDING) <= 1, f"{difference} is within the contract, but far above rounding"

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> Difference:
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        unit = 255.0 if ours.dtype == np.uint8 else 1.0
        ours, theirs = ours.astype(np.float64) / unit, theirs.astype(np.float64) / unit
        apart = np.abs(ours - theirs)
        return Difference(float(apart.max()), float(apart.mean()), float(theirs.std()), unit != 1.0)

    def run_ours(self, **request: Any) -> np.ndarray:
        """Frames (B, F, H, W, 3), or packed latents for output_type "latent"."""
        result = self.ours.generate(**request)
        made = result.latents if request.get("output_type") == "latent" else result.frames
        assert made is not None
        return made

    def run_theirs(self, *, seed: int | list[int] = 0, output_type: str = "np", **request: Any) -> np.ndarray:
        seeds = seed if isinstance(seed, list) else [seed]
        generators = [torch.Generator("cpu").manual_seed(each) for each in seeds]
        arguments = {name: _as_theirs(name, value) for name, value in request.items()}
        output = self.theirs(
            **arguments,
            generator=generators if isinstance(seed, list) else generators[0],
            output_type="pil" if output_type == "uint8" else output_type,
        ).frames
        if output_type == "uint8":
            return np.stack([np.stack([np.asarray(frame) for frame in video]) for video in output])
        return output.numpy() if output_type == "latent" else output


class Upscaling(Pair):
    """One upscaler on both sides."""

    def run_ours(self, **request: Any) -> np.ndarray:
        result = self.ours.upscale(**request)
        made = result.latents if request.get("output_type") == "latent" else result.frames
        assert made is not None
        return made

    def run_theirs(self, *, seed: Any = 0, output_type: str = "np", **request: Any) -> np.ndarray:
        generators = [torch.Generator("cpu").manual_seed(each) for each in (seed if isinstance(seed, list) else [seed])]
        if "latents" in request:
            request["latents"] = torch.from_numpy(request["latents"])
        elif request["video"].dtype == np.uint8:
            request["video"] = [Image.fromarray(frame) for frame in request["video"]]
            request = {"height": request["video"][0].height, "width": request["video"][0].width} | request
        generator = generators if isinstance(seed, list) else generators[0]
        kind = "pil" if output_type == "uint8" else output_type
        made = self.theirs(**request, generator=generator, output_type=kind).frames
        if output_type == "uint8":
            return np.stack([np.stack([np.asarray(frame) for frame in video]) for video in made])
        return made.numpy() if output_type == "latent" else made


def _as_theirs(name: str, value: Any) -> Any:
    """An argument of telecine's as diffusers takes it: PIL images for arrays of bytes, tensors for other arrays."""
    if name == "conditions":
        return [_condition(each) for each in value]
    if name == "video":
        return [Image.fromarray(frame) for frame in value]
    if name == "image":
        return [Image.fromarray(each) for each in value] if isinstance(value, list) else Image.fromarray(value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _condition(condition: telecine.Condition) -> LTXVideoCondition:
    where = {"frame_index": condition.frame_index, "strength": condition.strength}
    if condition.image is not None:
        return LTXVideoCondition(image=Image.fromarray(condition.image), **where)
    return LTXVideoCondition(video=[Image.fromarray(frame) for frame in condition.video], **where)


def _reference(source: Path) -> Any:
    pipeline: Any = LTXPipeline.from_pretrained(source, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """On busy cores torch's threads wait for each other: tiny models run 40 times slower with two than with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(tiny_source: Path, tiny_bundle: Path) -> Iterator[Pair]:
    """The tiny checkpoint: a timestep-conditioned decoder, dynamic shift, terminal 0.1."""
    with telecine.load(tiny_bundle) as ours:
        yield Pair(ours, _reference(tiny_source))


@pytest.fixture(scope="module")
def plain_pair(plain_source: Path, plain_bundle: Path) -> Iterator[Pair]:
    """Other weights, and a decoder that takes no timestep."""
    with telecine.load(plain_bundle) as ours:
        yield Pair(ours, _reference(plain_source))


@pytest.fixture(scope="module")
def noisy_pair(noisy_source: Path, noisy_bundle: Path) -> Iterator[Pair]:
    """0.9.1's decoder, which draws noise from torch's global generator: `run_theirs` seeds it as telecine does."""
    with telecine.load(noisy_bundle) as ours:
        yield Pair(ours, _reference(noisy_source))


@pytest.fixture(scope="module")
def pairs_of(kept_edited_bundle: Callable[..., Path]) -> Iterator[Callable[..., Pair]]:
    """`pairs_of(LTXConditionPipeline, source, bundle, shift=2.0)`: one checkpoint under another pipeline class."""
    opened: list[telecine.Pipeline] = []

    def make(kind: Any, source: Path, bundle: Path, **scheduler: Any) -> Pair:
        components = _reference(source).components
        config = dict(components["scheduler"].config) | scheduler
        theirs = kind(**components | {"scheduler": FlowMatchEulerDiscreteScheduler.from_config(config)})
        theirs.set_progress_bar_config(disable=True)
        copy = kept_edited_bundle(bundle, pipeline=kind.__name__)
        manifest_scheduler = telecine.Bundle.open(copy).manifest.host["scheduler"] | scheduler
        copy = kept_edited_bundle(copy, host={"scheduler": manifest_scheduler})
        opened.append(telecine.load(copy))
        return Pair(opened[-1], theirs)

    yield make
    for pipeline in opened:
        pipeline.close()


@pytest.fixture(scope="module")
def upscaling_of() -> Iterator[Callable[..., Upscaling]]:
    """`upscaling_of(bundle, pipeline)`: a bundle with an upsampler, and diffusers' LTXLatentUpsamplePipeline."""
    opened: list[telecine.Pipeline] = []

    def make(bundle: Path, theirs: Any) -> Upscaling:
        theirs.set_progress_bar_config(disable=True)
        opened.append(telecine.load(bundle))
        return Upscaling(opened[-1], theirs)

    yield make
    for pipeline in opened:
        pipeline.close()


@pytest.fixture(scope="session")
def diffusers_tiling() -> Callable[..., Any]:
    """`with diffusers_tiling(vae, (tile_size, tile_stride, tile_frames, tile_frame_stride)):` diffusers' VAE tiles."""
    return _diffusers_tiling


@contextmanager
def _diffusers_tiling(vae: Any, sizes: tuple[int, int, int, int]) -> Iterator[None]:
    size, stride, frames, hop = sizes
    vae.enable_tiling(size, size, frames, stride, stride, hop)
    vae.use_framewise_decoding = True  # it rules encoding too: use_framewise_encoding does nothing
    try:
        with torch.no_grad():
            yield
    finally:
        vae.disable_tiling()
        vae.use_framewise_decoding = False


@pytest.fixture(scope="module")
def image_pair(pairs_of: Callable[..., Pair], tiny_source: Path, tiny_bundle: Path) -> Pair:
    """The tiny checkpoint as LTXImageToVideoPipeline."""
    return pairs_of(LTXImageToVideoPipeline, tiny_source, tiny_bundle)


@pytest.fixture(scope="module")
def condition_pair(pairs_of: Callable[..., Pair], tiny_source: Path, tiny_bundle: Path) -> Pair:
    """The tiny checkpoint as LTXConditionPipeline, which needs a scheduler that does not shift by the tokens."""
    return pairs_of(LTXConditionPipeline, tiny_source, tiny_bundle, **STATIC)


STATIC = {"use_dynamic_shifting": False, "shift_terminal": None}


@pytest.fixture
def rescheduled(pair: Pair, tiny_bundle: Path, edited_bundle: Callable[..., Path]) -> Iterator[Callable[..., Pair]]:
    """`rescheduled(stochastic_sampling=True)`: the tiny checkpoint under other scheduler settings, on both sides."""
    opened: list[telecine.Pipeline] = []

    def make(**settings: Any) -> Pair:
        theirs = LTXPipeline(
            **pair.theirs.components
            | {"scheduler": FlowMatchEulerDiscreteScheduler.from_config(pair.theirs.scheduler.config, **settings)}
        )
        theirs.set_progress_bar_config(disable=True)
        scheduler = pair.ours.bundle.manifest.host["scheduler"] | settings
        opened.append(telecine.load(edited_bundle(tiny_bundle, host={"scheduler": scheduler})))
        return Pair(opened[-1], theirs)

    yield make
    for pipeline in opened:
        pipeline.close()


@pytest.fixture(scope="module")
def cogvideox_pair(
    cogvideox: Callable[..., tuple[Path, Path]], kept_edited_bundle: Callable[..., Path]
) -> Iterator[Callable[..., Pair]]:
    """`cogvideox_pair("5b", "dpm", CogVideoXVideoToVideoPipeline)`: a style under a scheduler and a pipeline class."""
    made: dict[tuple[Any, ...], Pair] = {}

    def make(style: str, scheduler: str = "ddim", kind: Any = None) -> Pair:
        if (style, scheduler, kind) not in made:
            source, bundle = cogvideox(style)
            theirs: Any = DiffusionPipeline.from_pretrained(source)
            if scheduler == "dpm":
                theirs.scheduler = CogVideoXDPMScheduler.from_config(theirs.scheduler.config)
                config = Bundle.open(bundle).manifest.host["scheduler"]
                bundle = kept_edited_bundle(
                    bundle, host={"scheduler": config | {"_class_name": "CogVideoXDPMScheduler"}}
                )
            assert isinstance(theirs.scheduler, (CogVideoXDDIMScheduler, CogVideoXDPMScheduler))
            if kind is not None:
                theirs = kind(**theirs.components)
            theirs.set_progress_bar_config(disable=True)
            made[style, scheduler, kind] = Pair(telecine.load(bundle), theirs)
        return made[style, scheduler, kind]

    yield make
    for pair in made.values():
        pair.ours.close()
