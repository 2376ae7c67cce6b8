"""Write a small LTX-Video checkpoint with random weights.

    python scripts/make_tiny_checkpoint.py OUT [--seed 0] [--upscaler OUT_UPSCALER]

It has every real component in diffusers' own layout, the real compression ratios (32 in space, 8 in
time) and the VAE of 0.9.5, at widths that generate a clip in about a second on a CPU. Its weights are
scaled so that the clips are not grey and that the prompt, its mask, guidance, frame rate and timesteps
all move the pixels: a parity test on a flat clip proves nothing.
"""

from __future__ import annotations

import argparse
import io
import math
import zlib
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXLatentUpsamplePipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer
from transformers.utils.logging import disable_progress_bar

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

LATENT_CHANNELS = 16
TEXT_WIDTH = 32
HEADS, HEAD_SIZE = 4, 16  # 64 wide; 64 % 6 = 4, so the rotary tables are padded as at 2048 (2 of 2048)
VOCABULARY = 300  # pieces; T5's 100 sentinels come on top
EXTRA_IDS = 100

SCHEDULER: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}

# (part of a parameter's name, mean, standard deviation); the first match wins. A standard deviation of
# None means 1/sqrt(fan in) times GAIN, so that activations keep their size through the layers.
TRANSFORMER_RULES = (
    ("norm_q.weight", 1.0, 0.2),
    ("norm_k.weight", 1.0, 0.2),
    ("scale_shift_table", 0.0, 0.3),
    (".bias", 0.0, 0.1),
)
VAE_RULES = (
    ("scale_shift_table", 0.0, 0.3),
    ("norm3.weight", 1.0, 0.2),
    ("per_channel_scale", 0.0, 0.5),  # of the injected noise; diffusers starts them at 0
    (".bias", 0.0, 0.1),
)
UPSAMPLER_RULES = (
    ("norm.weight", 1.0, 0.2),
    ("norm1.weight", 1.0, 0.2),
    ("norm2.weight", 1.0, 0.2),
    (".bias", 0.0, 0.1),
)
TEXT_RULES = (
    ("layer_norm.weight", 1.0, 0.2),
    ("relative_attention_bias.weight", 0.0, 1.0),
    ("shared.weight", 0.0, 1.0),
)
GAIN = {
    # Keeps pixels in [-1, 1] near a standard deviation of 0.4, so that few are clipped.
    "decoder.conv_out": 0.55,
    "attn2.to_out": 1.5,  # the prompt's way in
    # T5 does not divide the scores by sqrt(head size); its own initialisation does.
    "SelfAttention.q.": HEAD_SIZE**-0.5,
}

CORPUS_SUBJECTS = (
    "a red ball", "a blue cube", "the old sailor", "a woman with long brown hair", "two small dogs",
    "a green triangle", "the camera", "a yellow taxi", "an astronaut", "the waterfall", "a clown fish",
    "a white circle", "the city at night", "a child in a raincoat", "the black cat", "a wooden ship",
)  # fmt: skip
CORPUS_VERBS = (
    "rolls", "moves slowly", "walks", "jumps", "turns", "is floating", "runs quickly", "drifts",
    "rises", "falls", "looks", "swims", "is flying", "spins", "stands still", "slides",
)  # fmt: skip
CORPUS_PLACES = (
    "to the left", "to the right", "through the quiet forest", "over the snowy mountains",
    "on a gray background", "towards the bright window", "under a clear blue sky",
    "along the sandy beach, at sunset", "across the wet street", "in front of a large building",
    "from the top to the bottom", "near the calm lake",
)  # fmt: skip
CORPUS_STYLES = (
    "The scene is captured in real-life footage.", "Soft light, shallow depth of field; 4k.",
    "The scene appears to be computer-generated.",
    "worst quality, inconsistent motion, blurry, jittery, distorted",
    "Close-up shot: the camera pans, then zooms in!", "What happens next? Nothing at all.",
    "It is 25 frames per second (121 frames), 768x512.", "Don't move \"too fast\".",
)  # fmt: skip


def corpus() -> list[str]:
    """List the sentences that the tokenizer learns from, in a fixed order."""
    lines = []
    for i, subject in enumerate(CORPUS_SUBJECTS):
        for j, verb in enumerate(CORPUS_VERBS):
            place = CORPUS_PLACES[(3 * i + 5 * j) % len(CORPUS_PLACES)]
            style = CORPUS_STYLES[(i + j) % len(CORPUS_STYLES)]
            lines.append(f"{subject.capitalize()} {verb} {place}. {style}")
    words = sorted({word.strip('.,;:!?"()') for line in lines for word in line.split()})
    # By themselves the sentences hold about 200 pieces; words repeated in both cases make them 300.
    return lines + 3 * [word.lower() for word in words] + [word.capitalize() for word in words]


def train_sentencepiece() -> bytes:
    """Train a unigram model by T5's conventions: pad 0, </s> 1, <unk> 2, no <s>, nmt_nfkc, dummy prefix."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="unigram",
        vocab_size=VOCABULARY,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        num_threads=1,  # more would make the sums, and so the scores, depend on scheduling
        minloglevel=2,
    )
    return model.getvalue()


def _fan_in(parameter: torch.Tensor) -> int:
    return math.prod(parameter.shape[1:]) if parameter.ndim > 1 else parameter.numel()


def fill(module: torch.nn.Module, rules: tuple[tuple[str, float, float], ...], seed: int) -> None:
    """Overwrite every parameter of `module` with seeded noise, scaled by `rules`, GAIN and fan-in.

    Each parameter draws from a generator of its own, seeded by its name: adding a layer leaves the
    others as they were.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("timestep_scale_multiplier"):
                continue  # a constant of the architecture: 1000
            # torch's CPU generator looks at the low 32 bits of its seed, so both go into one hash.
            generator = torch.Generator("cpu").manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            for part, mean, std in rules:
                if part in name:
                    parameter.copy_(mean + std * noise)
                    break
            else:
                gain = next((value for part, value in GAIN.items() if part in name), 1.0)
                parameter.copy_(gain * _fan_in(parameter) ** -0.5 * noise)


def tiny_transformer(*, layers: int, seed: int) -> Any:
    """Build a transformer of (B, T, 16) latents, 64 wide, with a text width of 32."""
    width = HEADS * HEAD_SIZE
    transformer: Any = LTXVideoTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        cross_attention_dim=width,
        num_layers=layers,
        caption_channels=TEXT_WIDTH,
    )
    fill(transformer, TRANSFORMER_RULES, seed)
    return transformer


# 0.9.5's; 0.9.1 has the encoder of 0.9.0, strided convolutions, and a decoder that injects noise.
VAE: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (4, 8, 16, 32, 32),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 2, 1, 1),
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "patch_size": 4,
    "encoder_causal": True,
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
VAE_091: dict[str, Any] = VAE | {
    "block_out_channels": (4, 8, 16, 16),
    "down_block_types": ("LTXVideoDownBlock3D",) * 4,
    "spatio_temporal_scaling": (True, True, True, False),
    "downsample_type": ("conv",) * 4,
    "decoder_inject_noise": (True, True, True, False),
}


def tiny_vae(*, timestep_conditioning: bool, seed: int, inject_noise: bool = False) -> Any:
    """Build a VAE in the form of 0.9.5 or 0.9.1: (B, 3, 8k+1, 32h, 32w) to (B, 16, k+1, h, w) and back."""
    config = VAE_091 if inject_noise else VAE
    vae: Any = AutoencoderKLLTXVideo(**config, timestep_conditioning=timestep_conditioning)
    fill(vae, VAE_RULES, seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    vae.latents_mean.copy_(0.3 * torch.randn(LATENT_CHANNELS, generator=generator))
    vae.latents_std.copy_(0.7 + 0.6 * torch.rand(LATENT_CHANNELS, generator=generator))
    return vae


def tiny_upsampler(*, seed: int, **config: Any) -> Any:
    """Build an upsampler of (B, 16, F, H, W) latents; its GroupNorms have 32 groups, so 32 channels are the fewest."""
    upsampler: Any = LTXLatentUpsamplerModel(
        **{"in_channels": LATENT_CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1, **config}
    )
    fill(upsampler, UPSAMPLER_RULES, seed)
    return upsampler


def tiny_text_encoder(*, vocabulary: int, seed: int) -> T5EncoderModel:
    """Build a T5 v1.1 encoder: (B, L) ids to (B, L, 32)."""
    config_class: Any = T5Config  # its fields are set by a decorator that mypy does not follow
    config = config_class(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=HEAD_SIZE,
        d_ff=64,
        num_layers=2,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    text_encoder = T5EncoderModel(config)
    fill(text_encoder, TEXT_RULES, seed)
    return text_encoder


def tiny_tokenizer(folder: Path) -> T5Tokenizer:
    """Train the tokenizer and write it to `folder`, as both spiece.model and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(train_sentencepiece())
    tokenizer: T5Tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=EXTRA_IDS, model_max_length=128)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_tiny_checkpoint(
    out: Path,
    *,
    seed: int = 0,
    timestep_conditioning: bool = True,
    inject_noise: bool = False,
    dtype: str = "float32",
    scheduler: dict[str, Any] | None = None,
    layers: int = 2,
) -> Path:
    """Write a checkpoint that `LTXPipeline.from_pretrained(out)` loads, and return `out`.

    The same arguments give the same bytes of weights and tokenizer.

    Args:
        timestep_conditioning: whether the VAE's decoder takes a timestep, as 0.9.1 and later do.
        inject_noise: whether the VAE is 0.9.1's, whose decoder draws noise, instead of 0.9.5's.
        dtype: what the weights are stored as: float32, float16 or bfloat16.
        scheduler: overrides of the scheduler's configuration.
        layers: transformer blocks.

    Raises:
        ValueError: `dtype` is none of the three.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    out = Path(out)
    tokenizer = tiny_tokenizer(out / "tokenizer")
    # Rounded up as T5's 32100 tokens are to 32128 rows.
    vocabulary = -(-len(tokenizer) // 64) * 64
    pipeline: Any = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**SCHEDULER, **(scheduler or {})}),
        vae=tiny_vae(timestep_conditioning=timestep_conditioning, seed=seed, inject_noise=inject_noise),
        text_encoder=tiny_text_encoder(vocabulary=vocabulary, seed=seed),
        tokenizer=tokenizer,
        transformer=tiny_transformer(layers=layers, seed=seed),
    )
    if dtype != "float32":
        pipeline.to(dtype=DTYPES[dtype])
    pipeline.save_pretrained(out, safe_serialization=True)
    return out


def make_tiny_upscaler(
    out: Path, *, seed: int = 0, timestep_conditioning: bool = True, dtype: str = "float32", **config: Any
) -> Path:
    """Write an upscaler that `LTXLatentUpsamplePipeline.from_pretrained(out)` loads, and return `out`.

    Its VAE is that of the tiny checkpoint of the same seed; `config` is LTXLatentUpsamplerModel's (spatial_upsample,
    temporal_upsample, dims, ...).
    """
    pipeline: Any = LTXLatentUpsamplePipeline(
        vae=tiny_vae(timestep_conditioning=timestep_conditioning, seed=seed),
        latent_upsampler=tiny_upsampler(seed=seed, **config),
    )
    if dtype != "float32":
        pipeline.to(dtype=DTYPES[dtype])
    pipeline.save_pretrained(out, safe_serialization=True)
    return Path(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small LTX-Video checkpoint with random weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--upscaler", type=Path, help="write a spatial latent upsampler for it here")
    arguments = parser.parse_args()
    disable_progress_bar()  # of transformers' save_pretrained
    print(make_tiny_checkpoint(arguments.out, seed=arguments.seed, layers=arguments.layers, dtype=arguments.dtype))
    if arguments.upscaler:
        print(make_tiny_upscaler(arguments.upscaler, seed=arguments.seed, dtype=arguments.dtype))


if __name__ == "__main__":
    main()
