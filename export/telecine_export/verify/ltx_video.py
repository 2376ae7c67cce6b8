"""LTX-Video's checks: the inputs that each stage is compared on, and the torch code that it is compared with.

The references are diffusers' and transformers' own modules: none of the exporter's patches reaches them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config

from telecine.bundle import Bundle
from telecine.families.ltx_video.decode import InjectedNoise
from telecine.families.ltx_video.host import NoiseLevel
from telecine.noise import second_stream
from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape
from telecine.tokenizer import Tokenizer
from telecine_export.families.ltx_video import networks
from telecine_export.source import Source
from telecine_export.tokenizer import load_tokenizer
from telecine_export.verify.checks import Array, Case, FamilyChecks, compare_graph
from telecine_export.verify.comparison import Pair
from telecine_export.verify.ltx_video_run import (
    RUN_PARTS,
    RUN_STAGES,
    TRANSFORMER_INPUTS,
    bundle_run,
    seeded_globally,
    torch_run,
)
from telecine_export.verify.modules import load_module
from telecine_export.verify.weightless import WEIGHTLESS

# Where tokenizers disagree: spaces, sentinels, normalisation, scripts that the vocabulary lacks, length.
PROMPTS = (
    "A red ball rolls to the left. The scene is captured in real-life footage.",
    "",
    "   ",
    "  two  spaces, tabs\tand\nnewlines \r\n ",
    "worst quality, inconsistent motion, blurry (((jittery))) -- distorted?!",
    "ends early </s> and goes on",
    "<extra_id_0> starts, middle<extra_id_7>glued <extra_id_99>",
    " <extra_id_3>  spaces around a sentinel ",
    "<pad> and <unk>",
    "a fine ﬁne ①②③ ＡＢＣ ½ e\u0301 é",
    "une caméra près de l'eau; ein großes Gebäude",
    "一只红色的球滚到左边 cat",
    "emoji 🎬🎥 and 👩‍👩‍👧",
    "zero\u200bwidth no\u00a0break ideographic\u3000space",
    "▁ the metaspace ▁itself",
    "the quick brown ball " * 80,
)
TEXT_LENGTHS = (128, 9)

# (batch, text length); traced at (2, 12). 160 reaches beyond T5's largest relative distance.
TEXTS = ((1, 9), (3, 40), (2, 160))
# (latent shape, frame rate, text lengths of each video, padded length, a timestep per token); traced at batch 2, 24
# tokens, length 7, 5 rope positions.
VIDEOS = (
    (LatentShape(frames=1, height=3, width=7), 25.0, (11,), 11, False),
    (LatentShape(frames=9, height=3, width=5), 24.0, (4, 19), 19, False),
    (LatentShape(frames=3, height=4, width=6), 30.0, (1, 33, 17), 33, True),
)
# (batch, frames, height, width) in latents; encoder and decoder are traced at (2, 3, 2, 3) and (2, 3, 4, 5).
ENCODED = ((1, 1, 3, 1), (3, 2, 1, 4), (2, 4, 3, 2))
DECODED = ((1, 1, 3, 2), (3, 2, 1, 4), (2, 4, 2, 3))
UPSAMPLED = ((1, 1, 3, 2), (3, 2, 1, 4), (2, 4, 2, 3))
SEED = 0


def tokenizer(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, L) ids and masks of `PROMPTS`, one pair a prompt and length."""
    ours = Tokenizer.load(bundle.path(bundle.manifest.tokenizer))
    theirs = load_tokenizer(source.tokenizer)
    pairs = []
    for length in TEXT_LENGTHS:
        got = ours.encode(PROMPTS, max_sequence_length=length)
        expected = theirs(
            list(PROMPTS), padding="max_length", max_length=length, truncation=True, add_special_tokens=True,
            return_tensors="np",
        )  # fmt: skip
        for row, prompt in enumerate(PROMPTS):
            pairs.append(
                Pair(
                    case=f"{prompt[:40]!r} at {length} tokens",
                    shapes={"ids and mask": (2, length)},
                    got=np.stack([got.input_ids[row], got.attention_mask[row]]),
                    expected=np.stack([expected["input_ids"][row], expected["attention_mask"][row]]),
                )
            )
    return pairs


def text_encoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, L, D) embeddings of random ids."""
    vocabulary = T5Config(**source.config("text_encoder")).vocab_size
    random = np.random.default_rng(SEED)
    cases = [
        Case(name=f"{batch} x {length} ids", feeds={"input_ids": random.integers(0, vocabulary, (batch, length))})
        for batch, length in TEXTS
    ]
    return compare_graph(
        bundle,
        "text_encoder",
        cases,
        load=lambda: load_module(source, "text_encoder"),
        reference=lambda t5, case: t5(torch.from_numpy(case.feeds["input_ids"])).last_hidden_state,
    )


def transformer(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, T, C) velocities, with one timestep a video and one a token, and padded text.

    The rope tables come from the source's frequencies, so that this is about the graph; the whole run checks the
    bundle's own.
    """
    host = networks.host(source)
    return compare_graph(
        bundle,
        "transformer",
        _transformer_cases(host, _grid(host)),
        load=lambda: load_module(source, "transformer"),
        reference=_velocity,
    )


def _transformer_cases(host: dict[str, Any], grid: Grid) -> list[Case]:
    random = np.random.default_rng(SEED)
    frequencies = np.array(host["rope_frequencies"], np.float32)
    cases = []
    for latent, frame_rate, lengths, padded, per_token in VIDEOS:
        batch, tokens = len(lengths), latent.tokens
        rope = make_tables(video_positions(latent, grid, frame_rate), grid_index(latent), frequencies)
        timestep = random.uniform(0, 1000, (batch, tokens if per_token else 1))
        feeds = {
            "hidden_states": _normal(random, batch, tokens, host["latent_channels"]),
            "encoder_hidden_states": _normal(random, batch, padded, host["text_channels"]),
            "encoder_attention_mask": (np.arange(padded) < np.array(lengths)[:, None]).astype(np.float32),
            "timestep": timestep.astype(np.float32),
            "rope_cos": rope.cos,
            "rope_sin": rope.sin,
            "rope_index": rope.index,
            "stg_mode": np.zeros((host["transformer_blocks"], batch), np.int32),
        }
        size = f"{batch} x {latent.frames} x {latent.height} x {latent.width} latents"
        scale = (grid.temporal / frame_rate, grid.spatial, grid.spatial)
        name = f"{size}, a timestep per {'token' if per_token else 'video'}"
        cases.append(Case(name=name, feeds=feeds, extra={"latent": latent, "rope_interpolation_scale": scale}))
    return cases


def _velocity(model: Any, case: Case) -> Tensor:
    latent = case.extra["latent"]
    (velocity,) = model(
        **{name: torch.from_numpy(case.feeds[name]) for name in TRANSFORMER_INPUTS},
        num_frames=latent.frames,
        height=latent.height,
        width=latent.width,
        rope_interpolation_scale=case.extra["rope_interpolation_scale"],
        return_dict=False,
    )
    return velocity


def vae_encoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, 2 C, F, H, W) moments of random videos in [-1, 1]."""
    host = networks.host(source)
    grid = _grid(host)
    channels = host["latent_channels"]
    random = np.random.default_rng(SEED)
    cases = []
    for batch, *latents in ENCODED:
        video = LatentShape(frames=latents[0], height=latents[1], width=latents[2]).video(grid)
        size = (batch, 3, video.num_frames, video.height, video.width)
        feeds = {"video": random.uniform(-1, 1, size).astype(np.float32)}
        cases.append(Case(name=f"{batch} x {video.num_frames} x {video.height} x {video.width} pixels", feeds=feeds))

    def widen(moments: Array) -> Array:
        # The contract's one log-variance, C times, as diffusers gives it: were they different, this would show it.
        return np.concatenate([moments[:, :channels], *[moments[:, channels:]] * channels], axis=1)

    return compare_graph(
        bundle,
        "vae_encoder",
        cases,
        load=lambda: load_module(source, "vae"),
        reference=lambda vae, case: vae.encode(torch.from_numpy(case.feeds["video"])).latent_dist.parameters,
        widen=widen,
    )


def vae_decoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, 3, num_frames, height, width) videos of random latents, with another timestep for each where it has one."""
    host = networks.host(source)
    levels = tuple(NoiseLevel(**level) for level in host["decoder_noise"])
    random = np.random.default_rng(SEED)
    cases = []
    for batch, *latents in DECODED:
        feeds = {"latents": _normal(random, batch, host["latent_channels"], *latents)}
        if host["timestep_conditioning"]:
            feeds["timestep"] = np.linspace(0.05, 0.0, batch, dtype=np.float32)
        feeds |= InjectedNoise(levels, second_stream(SEED), feeds["latents"], fresh=False).whole
        cases.append(Case(name=f"{batch} x {' x '.join(map(str, latents))} latents", feeds=feeds))

    def decode(vae: Any, case: Case) -> Tensor:
        timestep = torch.from_numpy(case.feeds["timestep"]) if "timestep" in case.feeds else None
        with seeded_globally(SEED):
            return vae.decode(torch.from_numpy(case.feeds["latents"]), timestep).sample

    return compare_graph(
        bundle,
        "vae_decoder",
        cases,
        load=lambda: load_module(source, "vae"),
        reference=decode,
    )


def latent_upsampler(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, C, F, H, W) upsampled latents of random ones."""
    channels = networks.host(source)["latent_channels"]
    random = np.random.default_rng(SEED)
    cases = [
        Case(
            name=f"{batch} x {' x '.join(map(str, latents))} latents",
            feeds={"latents": _normal(random, batch, channels, *latents)},
        )
        for batch, *latents in UPSAMPLED
    ]
    return compare_graph(
        bundle,
        "latent_upsampler",
        cases,
        load=lambda: load_module(source, "latent_upsampler"),
        reference=lambda upsampler, case: upsampler(torch.from_numpy(case.feeds["latents"])),
    )


def _grid(host: dict[str, Any]) -> Grid:
    return Grid(spatial=host["spatial_ratio"], temporal=host["temporal_ratio"])


def _normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape, dtype=np.float32)


LTX_VIDEO = FamilyChecks(
    components={
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "transformer": transformer,
        "vae_encoder": vae_encoder,
        "vae_decoder": vae_decoder,
        "latent_upsampler": latent_upsampler,
        **WEIGHTLESS,
    },
    optional=("latent_upsampler",),
    run_stages=RUN_STAGES,
    run_parts=RUN_PARTS,
    bundle_run=bundle_run,
    torch_run=torch_run,
)
