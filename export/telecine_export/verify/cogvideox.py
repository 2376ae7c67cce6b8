"""CogVideoX' checks: the inputs that each stage is compared on, and the torch code that it is compared with.

The references are diffusers' and transformers' own modules: none of the exporter's patches reaches them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telecine.bundle import Bundle
from telecine.families.cogvideox.chunks import DECODER, ENCODER, Half
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Place, Rope
from telecine.shapes import LatentShape
from telecine_export.families.cogvideox import networks
from telecine_export.source import Source
from telecine_export.verify.checks import Array, BundleModels, Case, FamilyChecks, compare_graph
from telecine_export.verify.cogvideox_run import RUN_PARTS, RUN_STAGES, bundle_run, torch_run
from telecine_export.verify.comparison import Pair
from telecine_export.verify.ltx_video import text_encoder, tokenizer
from telecine_export.verify.modules import load_module
from telecine_export.verify.weightless import WEIGHTLESS

# (videos, text length, frame groups, rows, columns of tokens); traced at 2, 7, 2, 3, 4.
TRANSFORMED = ((1, 11, 1, 2, 5), (3, 40, 3, 5, 2), (2, 226, 4, 3, 3))
# (videos, frames or latents, height, width in latents): every kind of chunk, one to three of them.
ENCODED = ((1, 1, 3, 2), (1, 13, 2, 3), (2, 8, 1, 2), (1, 25, 2, 2), (1, 20, 2, 1))
DECODED = ((1, 1, 3, 2), (2, 3, 2, 3), (1, 2, 4, 1), (1, 7, 2, 2), (2, 4, 1, 3))
SEED = 0


def transformer(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, F, C, H, W) predictions of random latents, at sizes that were not traced (or the one of a learned table)."""
    config = networks.transformer_config(source)
    host = Host.parse(networks.host(source))
    sizes: tuple[tuple[int, ...], ...] = TRANSFORMED
    if isinstance(host.positions, Rope) and host.positions.table_frames is not None:
        rope = host.positions
        sizes = ((1, config["max_text_seq_length"], rope.table_frames or 1, rope.rows, rope.columns),)
    elif not config["use_rotary_positional_embeddings"]:  # diffusers adds positions of one text length
        sizes = tuple((size[0], config["max_text_seq_length"], *size[2:]) for size in TRANSFORMED)
    random = np.random.default_rng(SEED)
    return compare_graph(
        bundle,
        "transformer",
        [_case(random, config, host, *size) for size in sizes],
        load=lambda: load_module(source, "transformer"),
        reference=_prediction,
    )


def _case(
    random: np.random.Generator, config: Mapping[str, Any], host: Host, batch: int, length: int, groups: int, rows: int,
    columns: int,
) -> Case:  # fmt: skip
    patch, patch_t = host.grid.patch, host.grid.patch_t
    shape = (batch, groups * patch_t, config["in_channels"], rows * patch, columns * patch)
    feeds: dict[str, Array] = {
        "hidden_states": random.standard_normal(shape, dtype=np.float32),
        "encoder_hidden_states": random.standard_normal((batch, length, config["text_embed_dim"]), dtype=np.float32),
        "timestep": random.integers(0, 1000, batch).astype(np.float32),
        **host.positions.inputs(Place(groups, rows, columns)),
    }
    if host.ofs is not None:
        feeds["ofs"] = np.array([host.ofs], np.float32)
    return Case(name=f"{batch} x {groups * patch_t} x {rows * patch} x {columns * patch} latents", feeds=feeds)


def _prediction(model: Any, case: Case) -> Tensor:
    given = {name: torch.from_numpy(values) for name, values in case.feeds.items()}
    rotary = None
    if "rope_cos" in given:  # a value a pair here, two in diffusers
        rotary = tuple(given[name].flatten(0, 2).repeat_interleave(2, dim=1) for name in ("rope_cos", "rope_sin"))
    (prediction,) = model(
        hidden_states=given["hidden_states"],
        encoder_hidden_states=given["encoder_hidden_states"],
        timestep=given["timestep"],
        ofs=given.get("ofs"),
        image_rotary_emb=rotary,
        return_dict=False,
    )
    return prediction


def vae_encoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, 2C, F, H, W) moments of random videos in [-1, 1], through all of their chunks."""
    spatial = Host.parse(networks.host(source)).grid.spatial
    random = np.random.default_rng(SEED)
    videos = [
        random.uniform(-1, 1, (batch, 3, frames, height * spatial, width * spatial)).astype(np.float32)
        for batch, frames, height, width in ENCODED
    ]
    return _compare_chunks(bundle, source, ENCODER, videos, lambda vae, video: vae.encode(video).latent_dist.parameters)


def vae_decoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, 3, num_frames, height, width) videos of random latents, through all of their chunks."""
    host = Host.parse(networks.host(source))
    random = np.random.default_rng(SEED)
    latents = [
        random.standard_normal(LatentShape(frames=f, height=h, width=w).array_shape(batch, host.latent_channels))
        .astype(np.float32)
        for batch, f, h, w in DECODED
    ]  # fmt: skip
    return _compare_chunks(bundle, source, DECODER, latents, lambda vae, given: vae.decode(given).sample)


def _compare_chunks(bundle: Bundle, source: Source, half: Half, inputs: list[Array], reference: Any) -> list[Pair]:
    """Run a half of the VAE as the runtime does, then torch's module: only one of them is in memory at a time."""
    with contextlib.closing(BundleModels(bundle)) as models:
        got = [half.run_whole(models, given) for given in inputs]
    vae = load_module(source, "vae")
    with torch.inference_mode():
        expected = [reference(vae, torch.from_numpy(given)).float().numpy() for given in inputs]
    return [
        Pair(case=f"{' x '.join(map(str, given.shape))}", shapes={half.data: given.shape}, got=ours, expected=theirs)
        for given, ours, theirs in zip(inputs, got, expected, strict=True)
    ]


COGVIDEOX = FamilyChecks(
    components={
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "transformer": transformer,
        "vae_encoder": vae_encoder,
        "vae_decoder": vae_decoder,
        **WEIGHTLESS,
    },
    run_stages=RUN_STAGES,
    run_parts=RUN_PARTS,
    bundle_run=bundle_run,
    torch_run=torch_run,
)
