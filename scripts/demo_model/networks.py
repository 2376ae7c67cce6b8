"""The demo model's networks, in diffusers' and transformers' own classes, and its tokenizer."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx import LTXLatentUpsamplerModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from demo_model.data import BACKGROUNDS, COLOURS, caption, combinations, sample_scene

LATENT_CHANNELS = 48
TEXT_WIDTH = 96
TEXT_HEADS, TEXT_HEAD_SIZE = 6, 16
HEADS, HEAD_SIZE, LAYERS = 5, 32, 6
VOCABULARY = 320
EXTRA_IDS = 100

# mu 0.8 at 27 tokens (96x96x17), a little more for larger clips.
SCHEDULER: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.8,
    "max_shift": 1.4,
    "base_image_seq_len": 27,
    "max_image_seq_len": 256,
    "shift_terminal": 0.1,
}
# What the exporter's preset says besides the scene: prompts of LTX-Video that this tokenizer should know too.
MORE_TEXT = ("worst quality, inconsistent motion, blurry, jittery, distorted",)


def make_vae() -> Any:
    """(B, 3, 8k+1, 32h, 32w) to (B, 48, k+1, h, w) and back, in the form of 0.9.5."""
    vae: Any = AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(24, 32, 32, 64, 64),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(32, 32, 64),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(True,) * 3,
        upsample_factor=(1, 1, 2),
        timestep_conditioning=True,
        patch_size=4,
        encoder_causal=True,
        decoder_causal=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    with torch.no_grad():
        # torch's own initialisation is for layers that a normalisation with weights follows; here it starts too faint.
        for module in vae.decoder.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.weight.mul_(3**0.5)
    return vae


def make_transformer() -> Any:
    """(B, T, 48) latents and (B, L, 96) text to (B, T, 48) velocities."""
    return LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        cross_attention_dim=HEADS * HEAD_SIZE,
        num_layers=LAYERS,
        caption_channels=TEXT_WIDTH,
    )


def make_text_encoder(vocabulary: int) -> Any:
    """(B, L) ids to (B, L, 96): a T5 v1.1 encoder of two layers."""
    config_class: Any = T5Config
    config = config_class(
        vocab_size=-(-vocabulary // 64) * 64,
        d_model=TEXT_WIDTH,
        d_kv=TEXT_HEAD_SIZE,
        d_ff=192,
        num_layers=2,
        num_heads=TEXT_HEADS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def corpus(lines: int = 4000) -> list[str]:
    """The sentences that the tokenizer learns from, in a fixed order."""
    rng = np.random.default_rng(0)
    choices = combinations(held_out=False)
    texts = [caption(sample_scene(rng, choices), rng) for _ in range(lines)]
    texts += 20 * [*COLOURS, *BACKGROUNDS, *MORE_TEXT]
    words = sorted({word.strip(".,") for text in texts for word in text.split()})
    # A piece is learnt only if it is part of two different words; with punctuation every word is.
    return texts + [word + mark for word in words for mark in ("", ",", ".", "!", "?", ":")]


def make_tokenizer(folder: Path) -> T5Tokenizer:
    """Train the tokenizer by T5's conventions (pad 0, </s> 1, <unk> 2) and write it to `folder`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        num_threads=1,  # more would make the scores depend on scheduling
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").unlink(missing_ok=True)  # transformers would read it in place of the new model
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer: T5Tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=EXTRA_IDS, model_max_length=128)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_upsampler() -> Any:
    """(B, 48, f, h, w) latents to (B, 48, f, 2h, 2w)."""
    return LTXLatentUpsamplerModel(in_channels=LATENT_CHANNELS, mid_channels=32, num_blocks_per_stage=2)


def save_checkpoint(
    out: Path, *, vae: Any, text_encoder: Any, tokenizer: Any, transformer: Any, upsampler: Any
) -> None:
    """Write what `LTXPipeline.from_pretrained(out)` loads, and the upsampler beside: fp16 safetensors."""
    pipeline: Any = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(out, safe_serialization=True)
    upsampler.to(dtype=torch.float16).save_pretrained(out / "latent_upsampler", safe_serialization=True)
