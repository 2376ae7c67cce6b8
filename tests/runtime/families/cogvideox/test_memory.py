"""`memory_limit` over whole runs of CogVideoX, whose VAE has several graphs over the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import telecine
from telecine.bundle import Bundle
from telecine.errors import BundleError, RequestError
from telecine.memory_budget import SESSION
from telecine.pipeline import Pipeline

SMALL: dict[str, Any] = {"height": 48, "width": 80, "num_frames": 17, "num_inference_steps": 2, "seed": 0}
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 48, 80, 3), np.uint8)
VIDEO = {"video": PIXELS, "num_frames": None}


@pytest.fixture(scope="module")
def bundle(cogvideox: Callable[..., tuple[Path, Path]]) -> Path:
    return cogvideox("2b")[1]


@pytest.fixture
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with telecine.load(bundle, device="cpu") as pipeline:
        yield pipeline


def asked(**change: Any) -> dict[str, Any]:
    return {name: value for name, value in (SMALL | change).items() if value is not None}


def least(pipe: Pipeline, **change: Any) -> str:
    """The limit that a refusal names."""
    with pytest.raises(RequestError, match="memory_limit is 1MiB") as refused:
        pipe.generate("a", memory_limit="1MiB", **asked(**change))
    return refused.value.expected.split()[2]


def loaded(pipe: Pipeline) -> set[tuple[str, str]]:
    return set(pipe._models._sessions) - {("uint8_frames", "main"), ("denoise_step", "main")}


def test_without_a_limit_all_stay(pipe: Pipeline) -> None:
    first, second = (pipe.generate("a", **SMALL) for _ in range(2))
    assert loaded(pipe) == {
        ("text_encoder", "main"),
        ("transformer", "main"),
        ("vae_decoder", "first"),
        ("vae_decoder", "next"),
    }
    assert "load" in first.timings
    assert "load" not in second.timings
    assert first.memory.limit is None
    assert first.memory.predicted == second.memory.predicted > 0


@pytest.mark.parametrize(
    "given", [{}, VIDEO, {"num_videos_per_prompt": 2, "seed": None}], ids=["text", "video", "batch"]
)
def test_the_least_that_a_refusal_names_is_enough(pipe: Pipeline, given: dict[str, Any]) -> None:
    result = pipe.generate("a", memory_limit=least(pipe, **given), **asked(**given))
    assert result.memory.limit is not None
    assert result.memory.predicted <= result.memory.limit
    assert {component for component, _ in loaded(pipe)} == {"vae_decoder"}


def test_networks_go_before_pixels_change(pipe: Pipeline) -> None:
    """Less than all at once, enough for the decoder alone."""
    whole = pipe.generate("a", **SMALL)
    assert whole.memory.predicted is not None
    limited = pipe.generate("a", memory_limit=whole.memory.predicted - 2**20, **SMALL)
    np.testing.assert_array_equal(limited.frames, whole.frames)
    assert ("transformer", "main") not in loaded(pipe)
    tiled = pipe.generate("a", memory_limit=least(pipe), **SMALL)
    assert np.abs(np.subtract(tiled.frames, whole.frames)).max() > 0


def test_of_latents_the_decoder_counts_nothing(pipe: Pipeline) -> None:
    request = asked(output_type="latent", guidance_scale=3.0)
    free = pipe.generate("a", **request)
    tight = pipe.generate("a", memory_limit=least(pipe, output_type="latent", guidance_scale=3.0), **request)
    # Passes one by one, where a batch was too much: float32 rounding.
    np.testing.assert_allclose(tight.latents, free.latents, atol=1e-5)


def test_every_graph_of_the_decoder_has_its_weights(pipe: Pipeline) -> None:
    """Of 17 frames two run, of 9 one. The chunks of both are as large; their frames are not."""
    weights = pipe.bundle.component("vae_decoder").weights.size
    pipe.generate("a", **SMALL | {"num_frames": 9})
    assert [each.roles for each in pipe._models._residents.held.values()][-1] == ("first",)
    pipe.generate("a", **SMALL)
    need = pipe._models._residents.held["vae_decoder"]
    assert (need.roles, need.weights) == (("first", "next"), 2 * weights)
    assert need.kept == 2 * weights + 2 * SESSION + need.activations


def test_the_decoder_s_first_graph_loads_while_the_transformer_runs(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, str]] = []
    monkeypatch.setattr(pipe._models, "_try_load", tried.append)
    embeds = np.zeros((1, 4, 32), np.float32)
    pipe.generate(prompt_embeds=embeds, negative_prompt_embeds=embeds, **SMALL)
    assert tried == [("vae_decoder", "first")]


def test_an_encoder_that_is_not_there_is_told_before_anything_runs(
    bundle: Path, edited_bundle: Callable[..., Path]
) -> None:
    components = Bundle.open(bundle).manifest.components
    parts = {name: part for name, part in components.items() if name != "vae_encoder"}
    with telecine.load(edited_bundle(bundle, components=parts), device="cpu") as pipe:
        with pytest.raises(BundleError, match="vae_encoder"):
            pipe.generate("a", **asked(**VIDEO))
        assert not loaded(pipe)
