"""One graph, any legal size: each exported network against the torch module that it was traced from.

The transformer's perturbations (spatio-temporal guidance) have no torch implementation to compare with: the reference
here is written from their definitions, one batch element at a time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape

LTX = Grid(spatial=32, temporal=8)
CHANNELS, TEXT_CHANNELS, BLOCKS = 16, 32, 2  # of the tiny checkpoint
NONE, VALUES, SKIP_ATTENTION, SKIP_BLOCK = range(4)

# The contract of one transformer call. Velocities have a deviation of 1.1; measured up to 3e-6.
TRANSFORMER = 1e-5
# Embeddings have a deviation of 1; measured up to 2e-6.
TEXT_ENCODER = 1e-5
# Video has a deviation of 0.3 and some 20 convolutions, each summed in another order, behind it: measured up to 7e-6.
VAE_DECODER = 2e-5
# Moments have a deviation of 0.5; measured up to 2e-6.
VAE_ENCODER = 1e-5


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def torch_of(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def assert_close(ours: np.ndarray, theirs: torch.Tensor, tolerance: float) -> None:
    expected = theirs.numpy()
    assert ours.shape == expected.shape
    assert expected.std() > 0.1, "a flat reference proves nothing"
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def _opener(path: Path) -> Iterator[Callable[[str], Run]]:
    """`open(component)`: a function from inputs to the one output, on telecine's own session."""
    bundle = Bundle.open(path)
    with contextlib.ExitStack() as opened:

        @functools.cache
        def open_graph(component: str) -> Run:
            graph, options = bundle.graph(component), OnnxRuntimeOptions()
            session = OnnxRuntimeSession.load(graph, bundle.path(graph.file), device="cpu", options=options)
            opened.enter_context(session)
            (output,) = session.outputs
            return lambda feeds: session.run(feeds)[output]

        yield open_graph


@pytest.fixture(scope="module")
def open_tiny(tiny_bundle: Path) -> Iterator[Callable[[str], Run]]:
    yield from _opener(tiny_bundle)


@pytest.fixture(scope="module")
def open_plain(plain_bundle: Path) -> Iterator[Callable[[str], Run]]:
    yield from _opener(plain_bundle)


@pytest.fixture(scope="module")
def transformer(open_tiny: Callable[[str], Run]) -> Run:
    return open_tiny("transformer")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Call:
    """One call of the transformer, for the graph and for torch: (F, H, W) latents, B videos, L text tokens."""

    def __init__(
        self,
        pair: Any,
        latent: tuple[int, int, int] = (2, 3, 5),  # not the 24 tokens that export traced
        *,
        batch: int = 2,
        length: int = 10,
        rate: float = 25,
        mask: np.ndarray | None = None,
        timestep: np.ndarray | None = None,
        stg_mode: np.ndarray | None = None,
    ) -> None:
        shape = LatentShape(frames=latent[0], height=latent[1], width=latent[2])
        frequencies = np.array(pair.ours.bundle.manifest.host["rope_frequencies"], np.float32)
        tables = make_tables(video_positions(shape, LTX, rate), grid_index(shape), frequencies)
        self.model = pair.theirs.transformer
        self.latent, self.rate = latent, rate
        self.feeds: dict[str, np.ndarray] = {
            "hidden_states": draw(batch, shape.tokens, CHANNELS, seed=1),
            "encoder_hidden_states": draw(batch, length, TEXT_CHANNELS, seed=2),
            "encoder_attention_mask": np.ones((batch, length), np.float32) if mask is None else mask,
            "timestep": np.full((batch, 1), 725.5, np.float32) if timestep is None else timestep,
            "rope_cos": tables.cos,
            "rope_sin": tables.sin,
            "rope_index": tables.index,
            "stg_mode": np.zeros((BLOCKS, batch), np.int32) if stg_mode is None else stg_mode,
        }

    def torch_velocity(self, element: int | None = None) -> torch.Tensor:
        """(B, T, C) of the whole batch, or (1, T, C) of one element."""
        rows = slice(None) if element is None else slice(element, element + 1)
        inputs = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep")
        frames, height, width = self.latent
        (velocity,) = self.model(
            **{name: torch_of(self.feeds[name][rows]) for name in inputs},
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(LTX.temporal / self.rate, LTX.spatial, LTX.spatial),
            return_dict=False,
        )
        return velocity


# Sizes, batches, text


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(
    "latent",
    [(1, 1, 1), (1, 1, 7), (7, 1, 1), (1, 5, 1), (3, 5, 7), (2, 16, 24)],
    ids=lambda sizes: "x".join(map(str, sizes)),
)
def test_sizes_that_were_not_traced(pair: Any, transformer: Run, latent: tuple[int, int, int], batch: int) -> None:
    call = Call(pair, latent, batch=batch)
    assert_close(transformer(call.feeds), call.torch_velocity(), TRANSFORMER)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 7, 77, 128, 256])
def test_text_lengths(pair: Any, transformer: Run, length: int, batch: int) -> None:
    call = Call(pair, length=length, batch=batch)
    assert_close(transformer(call.feeds), call.torch_velocity(), TRANSFORMER)


@pytest.mark.parametrize(
    "pattern",
    [
        [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
        [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
        [[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]],
        [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]],
        [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]],
    ],
    ids=["pads-after", "pads-before", "holes", "one-token", "one-masked"],
)
def test_text_masks(pair: Any, transformer: Run, pattern: list[list[int]]) -> None:
    # Not a mask of zeros alone: there the scores drown in the bias of -10,000, which float32 rounds to 1e-3.
    call = Call(pair, length=6, mask=np.array(pattern, np.float32))
    assert_close(transformer(call.feeds), call.torch_velocity(), TRANSFORMER)


def test_masked_text_does_not_count(pair: Any, transformer: Run) -> None:
    mask = np.array([[1, 1, 1, 0, 0, 0]] * 2, np.float32)
    call = Call(pair, length=6, mask=mask)
    before = transformer(call.feeds)
    call.feeds["encoder_hidden_states"][:, 3:] = 100
    np.testing.assert_array_equal(transformer(call.feeds), before)


@pytest.mark.parametrize("rate", [8, 23.976, 60])
def test_frame_rates(pair: Any, transformer: Run, rate: float) -> None:
    call = Call(pair, (9, 2, 3), rate=rate)
    assert_close(transformer(call.feeds), call.torch_velocity(), TRANSFORMER)


# Timesteps: one a video, or one a token


@pytest.mark.parametrize("timestep", [1000, 999.5, 421.875, 0.03, 0], ids=str)
def test_one_timestep_for_all(pair: Any, transformer: Run, timestep: float) -> None:
    call = Call(pair, timestep=np.full((2, 1), timestep, np.float32))
    assert_close(transformer(call.feeds), call.torch_velocity(), TRANSFORMER)


def test_a_timestep_per_video(pair: Any, transformer: Run) -> None:
    call = Call(pair, batch=3, timestep=np.array([[1000], [500.25], [0]], np.float32))
    assert_close(transformer(call.feeds), call.torch_velocity(), TRANSFORMER)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("latent", [(1, 1, 1), (3, 2, 2), (2, 5, 7)], ids=lambda sizes: "x".join(map(str, sizes)))
def test_a_timestep_per_token(pair: Any, transformer: Run, latent: tuple[int, int, int], batch: int) -> None:
    tokens = latent[0] * latent[1] * latent[2]
    timestep = np.random.default_rng(3).uniform(0, 1000, (batch, tokens)).astype(np.float32)
    timestep[:, : tokens // 3] = 0  # frozen conditioning frames
    call = Call(pair, latent, batch=batch, timestep=timestep)
    assert_close(transformer(call.feeds), call.torch_velocity(), TRANSFORMER)


def test_both_timestep_forms_agree(pair: Any, transformer: Run) -> None:
    each = transformer(Call(pair, timestep=np.full((2, 30), 640.5, np.float32)).feeds)
    once = transformer(Call(pair, timestep=np.full((2, 1), 640.5, np.float32)).feeds)
    np.testing.assert_allclose(each, once, rtol=0, atol=TRANSFORMER)


# Spatio-temporal guidance


def perturbed(call: Call, patch: pytest.MonkeyPatch) -> torch.Tensor:
    """(B, T, C) velocities by the definitions of the modes, one element at a time.

    Sources: arXiv 2411.18664; Lightricks/LTX-Video, SkipLayerStrategy.
    """
    velocities = []
    for element, modes in enumerate(call.feeds["stg_mode"].T):
        with patch.context() as here:
            for block, mode in zip(call.model.transformer_blocks, modes, strict=True):
                project = block.attn1.to_out[0]
                if mode == VALUES:  # nobody looks at anybody: the values take the place of their mixture

                    def values(hidden_states: Any, attn: Any = block.attn1, out: Any = project, **unused: Any) -> Any:
                        return out(attn.to_v(hidden_states))

                    here.setattr(block.attn1, "forward", values)
                elif mode == SKIP_ATTENTION:  # the block's normed and modulated input takes its place

                    def skip(hidden_states: Any, out: Any = project, **unused: Any) -> Any:
                        return out(hidden_states)

                    here.setattr(block.attn1, "forward", skip)
                elif mode == SKIP_BLOCK:  # the block is the identity
                    here.setattr(block, "forward", lambda hidden_states, **unused: hidden_states)
            velocities.append(call.torch_velocity(element))
    return torch.cat(velocities)


@pytest.mark.parametrize("timesteps", [1, 30], ids=["per-video", "per-token"])
@pytest.mark.parametrize(
    "modes",
    [
        [[VALUES, VALUES], [NONE, NONE]],
        [[NONE, NONE], [VALUES, VALUES]],
        [[SKIP_ATTENTION, SKIP_ATTENTION], [NONE, NONE]],
        [[NONE, NONE], [SKIP_ATTENTION, SKIP_ATTENTION]],
        [[SKIP_BLOCK, SKIP_BLOCK], [NONE, NONE]],
        [[NONE, NONE], [SKIP_BLOCK, SKIP_BLOCK]],
        [[SKIP_BLOCK], [SKIP_BLOCK]],
        [[NONE, NONE, VALUES], [NONE, NONE, NONE]],  # unconditional, conditional, perturbed: a run's own passes
        [[NONE, VALUES, SKIP_ATTENTION, SKIP_BLOCK], [SKIP_BLOCK, SKIP_ATTENTION, VALUES, NONE]],
        [[VALUES, SKIP_ATTENTION, SKIP_BLOCK], [VALUES, SKIP_ATTENTION, NONE]],
    ],
    ids=lambda table: "/".join("".join(map(str, row)) for row in table),
)
def test_perturbations(
    pair: Any, transformer: Run, monkeypatch: pytest.MonkeyPatch, modes: list[list[int]], timesteps: int
) -> None:
    stg_mode = np.array(modes, np.int32)
    batch = stg_mode.shape[1]
    timestep = np.random.default_rng(5).uniform(0, 1000, (batch, timesteps)).astype(np.float32)
    call = Call(pair, batch=batch, stg_mode=stg_mode, timestep=timestep)
    assert_close(transformer(call.feeds), perturbed(call, monkeypatch), TRANSFORMER)


@pytest.mark.parametrize("mode", [VALUES, SKIP_ATTENTION, SKIP_BLOCK])
@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_perturbation_moves_its_own_element_and_no_other(pair: Any, transformer: Run, block: int, mode: int) -> None:
    plain = Call(pair, batch=3)
    modes = np.zeros((BLOCKS, 3), np.int32)
    modes[block, 1] = mode
    before, after = transformer(plain.feeds), transformer(plain.feeds | {"stg_mode": modes})
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.abs(after[1] - before[1]).mean() > 0.05


# The text encoder


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 130, 255, 256])
def test_text_encoder_around_the_bounds_of_position_buckets(
    pair: Any, open_tiny: Callable[[str], Run], length: int, batch: int
) -> None:
    ids = np.random.default_rng(length).integers(0, 400, (batch, length))
    (theirs,) = pair.theirs.text_encoder(torch_of(ids), return_dict=False)
    assert_close(open_tiny("text_encoder")({"input_ids": ids}), theirs, TEXT_ENCODER)


# The VAE


LATENTS = [(1, 1, 1), (1, 2, 5), (2, 1, 1), (3, 3, 1), (5, 2, 3)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("latent", LATENTS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_decoder(pair: Any, open_tiny: Callable[[str], Run], latent: tuple[int, int, int], batch: int) -> None:
    latents, timestep = draw(batch, CHANNELS, *latent), np.linspace(0.05, 0.4, batch, dtype=np.float32)
    theirs = pair.theirs.vae.decode(torch_of(latents), torch_of(timestep)).sample
    assert_close(open_tiny("vae_decoder")({"latents": latents, "timestep": timestep}), theirs, VAE_DECODER)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("latent", LATENTS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_decoder_without_timesteps(
    plain_pair: Any, open_plain: Callable[[str], Run], latent: tuple[int, int, int], batch: int
) -> None:
    latents = draw(batch, CHANNELS, *latent)
    theirs = plain_pair.theirs.vae.decode(torch_of(latents)).sample
    assert_close(open_plain("vae_decoder")({"latents": latents}), theirs, VAE_DECODER)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("latent", LATENTS, ids=lambda sizes: "x".join(map(str, sizes)))
def test_encoder(pair: Any, open_tiny: Callable[[str], Run], latent: tuple[int, int, int], batch: int) -> None:
    frames, height, width = latent
    video = np.tanh(draw(batch, 3, 8 * frames - 7, 32 * height, 32 * width))
    theirs = pair.theirs.vae.encode(torch_of(video)).latent_dist.parameters
    # diffusers repeats the one log-variance for every channel; the graph gives it once.
    assert torch.equal(theirs[:, CHANNELS:], theirs[:, CHANNELS : CHANNELS + 1].expand(-1, CHANNELS, -1, -1, -1))
    assert_close(open_tiny("vae_encoder")({"video": video}), theirs[:, : CHANNELS + 1], VAE_ENCODER)
