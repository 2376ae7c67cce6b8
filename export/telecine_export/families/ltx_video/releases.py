"""The published LTX-Video models as data, for files that come without a configuration, and how to tell them apart.

Source: diffusers' scripts/convert_ltx_to_diffusers.py; each configuration says where it differs from the defaults of
diffusers' class. Models of other releases (0.9.6, 0.9.8, distilled ones) have one of these architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from telecine.errors import SourceError
from telecine.families.ltx_video.names import transformer_names, vae_names
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.checkpoints.renamed import Renamed

Config = Mapping[str, Any]

TRANSFORMER_2B: Config = {"_class_name": "LTXVideoTransformer3DModel"}
TRANSFORMER_13B: Config = {
    **TRANSFORMER_2B, "num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096,
}  # fmt: skip
VAE_090: Config = {"_class_name": "AutoencoderKLLTXVideo"}
VAE_091: Config = {
    **VAE_090,
    "decoder_block_out_channels": [256, 512, 1024],
    "decoder_layers_per_block": [5, 6, 7, 8],
    "decoder_spatio_temporal_scaling": [True, True, True],
    "decoder_inject_noise": [True, True, True, False],
    "upsample_residual": [True, True, True],
    "upsample_factor": [2, 2, 2],
    "timestep_conditioning": True,
}
VAE_095: Config = {
    **VAE_091,
    "block_out_channels": [128, 256, 512, 1024, 2048],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
    "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5],
    "spatio_temporal_scaling": [True] * 4,
    "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
T5_XXL: Config = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
STATIC: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": False}
DYNAMIC: Config = {
    **STATIC,
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What makes a pipeline of a file that holds a transformer and a VAE: their configurations, and the rest."""

    name: str
    transformer: Config
    vae: Config
    scheduler: Config
    pipeline_class: str


# The pipeline of 0.9.5 and later takes images and videos at any frame, or text alone.
RELEASES: tuple[Release, ...] = (
    Release(
        name="0.9.0", transformer=TRANSFORMER_2B, vae=VAE_090, scheduler=DYNAMIC, pipeline_class="LTXPipeline"
    ),
    Release(
        name="0.9.1", transformer=TRANSFORMER_2B, vae=VAE_091, scheduler=DYNAMIC, pipeline_class="LTXPipeline"
    ),
    Release(
        name="0.9.5", transformer=TRANSFORMER_2B, vae=VAE_095, scheduler=STATIC, pipeline_class="LTXConditionPipeline"
    ),
    Release(
        name="0.9.7", transformer=TRANSFORMER_13B, vae=VAE_095, scheduler=STATIC, pipeline_class="LTXConditionPipeline"
    ),
)  # fmt: skip
# What the transformer shares with another part, by the names in either configuration, and diffusers' default.
WIDTHS = (("vae", "latent_channels", "in_channels", 128), ("text_encoder", "d_model", "caption_channels", 4096))
TEXT_ENCODERS: tuple[Config, ...] = (T5_XXL,)


def _text_encoder_names(names: Collection[str]) -> dict[str, str]:
    """T5's encoder by transformers' names, which its files have; the embedding by the one that T5EncoderModel shows."""
    if "encoder.block.0.layer.0.SelfAttention.q.weight" not in names:
        return {}
    shared = "shared.weight" if "shared.weight" in names else "encoder.embed_tokens.weight"
    return {name: name for name in names} | {"shared.weight": shared}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How a component is found in a file, and what it may be."""

    names: Callable[[Collection[str]], dict[str, str]]
    build: Callable[[Config], nn.Module]
    known: Callable[[], list[Config]]


KINDS: Mapping[str, _Kind] = {
    "transformer": _Kind(
        names=transformer_names,
        build=lambda config: LTXVideoTransformer3DModel.from_config(dict(config)),
        known=lambda: [release.transformer for release in RELEASES],
    ),
    "vae": _Kind(
        names=vae_names,
        build=lambda config: AutoencoderKLLTXVideo.from_config(dict(config)),
        known=lambda: [release.vae for release in RELEASES],
    ),
    "text_encoder": _Kind(
        names=_text_encoder_names,
        build=lambda config: T5EncoderModel(T5Config(**config)),
        known=lambda: list(TEXT_ENCODERS),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """A component in a file: its configuration, and its tensors' names as {diffusers': the file's}."""

    config: Config
    names: Mapping[str, str]


def holds(component: str, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's keys are those of such a component."""
    return bool(KINDS[component].names(checkpoint.names()))


def recognise(component: str, checkpoint: Checkpoint, *, also: Sequence[Config] = ()) -> Recognised:
    """Tell a component's configuration from its tensors: that of a release, or one of `also`, which come first.

    Raises:
        SourceError: the checkpoint has no such component, or one that no configuration fits.
    """
    kind = KINDS[component]
    names = kind.names(checkpoint.names())
    if not names:
        raise SourceError(
            f"{checkpoint.origin} has no {component.replace('_', ' ')}",
            expected="LTX-Video's tensors, by their original or diffusers' names",
            fix="Check that the file is the one that was meant.",
        )
    view = Renamed(checkpoint, names)
    closest: list[str] | None = None
    for config in _distinct([*also, *kind.known()]):
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in kind.build(config).state_dict().items()}
        wanted.pop("encoder.embed_tokens.weight", None)  # T5's `shared.weight` again
        problems = _misfits(wanted, view)
        if not problems:
            return Recognised(config=config, names=names)
        if closest is None or len(problems) < len(closest):
            closest = problems
    problems = closest or []
    raise SourceError(
        f"{checkpoint.origin} has a {component.replace('_', ' ')} of no known shape: {len(problems)} tensors differ"
        f" from the closest, first {problems[0]}",
        expected="one of LTX-Video 0.9.0 to 0.9.8, or of the base source's shape",
        fix="Pass a folder in diffusers' layout, whose config.json tells the shape; or download the file again.",
    )


def _distinct(configs: list[Config]) -> list[Config]:
    return [config for index, config in enumerate(configs) if config not in configs[:index]]


def release_of(transformer: Config, vae: Config, origin: Path) -> Release:
    """
    Raises:
        SourceError: no release has these two.
    """
    for release in RELEASES:
        if (release.transformer, release.vae) == (transformer, vae):
            return release
    raise SourceError(
        f"{origin} has the transformer of one release and the VAE of another",
        expected=f"both of one of {', '.join(release.name for release in RELEASES)}",
        fix="Pass a folder in diffusers' layout and the file's parts as --transformer and --vae.",
    )


def check_widths(configs: Mapping[str, Config], origins: Mapping[str, Path]) -> None:
    """Refuse parts of different models: each would export, and together they would make noise.

    Raises:
        SourceError: the transformer's latents are not the VAE's, or its text is not the text encoder's.
    """
    if configs["transformer"].get("_class_name", TRANSFORMER_2B["_class_name"]) != TRANSFORMER_2B["_class_name"]:
        return  # another family's, which checks its parts itself
    for part, key, theirs, default in WIDTHS:
        got, width = configs["transformer"].get(theirs, default), configs[part].get(key, default)
        if got != width:
            raise SourceError(
                f"{origins['transformer']} has {theirs} {got} and {origins[part]} has {key} {width}",
                expected="a transformer, a VAE and a text encoder of one model",
                fix="Check what is passed as --transformer, --vae and --text-encoder.",
            )


def _misfits(wanted: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> list[str]:
    """What keeps a model of these shapes from loading the checkpoint. Tensors beyond it (scales, statistics) do not."""
    problems = [f"{name}, which is missing" for name in wanted if name not in checkpoint]
    for name, shape in wanted.items():
        if name in checkpoint and checkpoint.shape(name) != shape:
            problems.append(f"{name} of shape {list(checkpoint.shape(name))} and not {list(shape)}")
    return problems
