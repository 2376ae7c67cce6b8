"""torch's side of a comparison: diffusers' and transformers' own modules, holding a source's weights at fp32.

A component folder is loaded by its class's own `from_pretrained`. What diffusers has no loader for (several parts,
fused LoRAs, quantised weights without their library) is its module filled with the tensors that export reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines import ltx2
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, T5Config, T5EncoderModel

from telecine.families.names import TIED_NAMES
from telecine_export.components import FolderComponent
from telecine_export.families.upscaler import LATENT_UPSAMPLER
from telecine_export.family import family_of
from telecine_export.source import Source
from telecine_export.tokenizer import load_tokenizer
from telecine_export.verify.checks import FP32, loading

# By component, where its configuration names none of diffusers' classes; text encoders are below.
MODULES: Mapping[str, Any] = {
    "transformer": LTXVideoTransformer3DModel,
    "vae": AutoencoderKLLTXVideo,
    "latent_upsampler": LTXLatentUpsamplerModel,
    "scheduler": FlowMatchEulerDiscreteScheduler,
    "connectors": ltx2.LTX2TextConnectors,
    "audio_vae": AutoencoderKLLTX2Audio,
    "vocoder": ltx2.LTX2Vocoder,
}
# What a pipeline for generation is made of, and what those of LTX-2 have besides.
PIPELINE_MODULES = ("text_encoder", "transformer", "vae")
FURTHER_MODULES = ("connectors", "audio_vae", "vocoder")
# transformers' configurations of text encoders, which name no class of diffusers.
TEXT_ENCODERS: Mapping[str, tuple[Any, Any]] = {
    "gemma3": (Gemma3Config, Gemma3ForConditionalGeneration),
    "t5": (T5Config, T5EncoderModel),
}
# Of Gemma-3: what sees images and predicts words, which LTX-2 has no use for.
UNUSED = ("model.vision_tower.", "model.multi_modal_projector.", "lm_head.")


def load_module(source: Source, component: str) -> nn.Module:
    """A component as torch's module.

    Raises:
        SourceError: torch cannot load it.
    """
    part = source.component(component)
    with loading(str(part.origin)):
        if _loads(source, component):
            module: nn.Module = _class_of(source, component).from_pretrained(part.origin, **FP32)
        else:
            module = _filled(source, component)
    return module.eval()


def load_pipeline(source: Source) -> Any:
    """The source's diffusers pipeline.

    Raises:
        SourceError: diffusers cannot load it.
    """
    kind = getattr(diffusers, source.pipeline_class)
    own = set(source.components) <= {LATENT_UPSAMPLER}  # of which the pipeline knows nothing
    if own and all(_loads(source, component) for component in _parts(source)):
        with loading(str(source.root)):
            return kind.from_pretrained(source.root, **FP32)
    return kind(
        scheduler=_class_of(source, "scheduler").from_config(source.config("scheduler")),
        tokenizer=load_tokenizer(source.tokenizer, family_of(source).tokenizer),
        **{component: load_module(source, component) for component in _parts(source)},
    )


def _parts(source: Source) -> list[str]:
    """What the source's pipeline is made of."""
    return [*PIPELINE_MODULES, *(name for name in FURTHER_MODULES if source.component(name).origin.exists())]


def _class_of(source: Source, component: str) -> Any:
    """The class that a component's configuration names."""
    config = source.config(component)
    if component == "text_encoder":
        return TEXT_ENCODERS.get(config.get("model_type", ""), TEXT_ENCODERS["t5"])[1]
    named = config.get("_class_name", "")
    return getattr(diffusers, named, None) or getattr(ltx2, named, MODULES[component])


def _loads(source: Source, component: str) -> bool:
    """Whether `from_pretrained` of the component's folder gives what was exported, with no other library."""
    part = source.component(component)
    fused = component == "transformer" and bool(source.loras)
    return isinstance(part, FolderComponent) and not fused and not part.is_quantised()


def _filled(source: Source, component: str) -> nn.Module:
    config, kind = source.config(component), _class_of(source, component)
    settings = next((settings for settings, encoder in TEXT_ENCODERS.values() if encoder is kind), None)
    module: nn.Module = kind.from_config(config) if settings is None else kind(settings(**config))
    with source.checkpoint(component) as checkpoint, torch.no_grad():
        for name, target in module.state_dict().items():  # one tensor at a time
            if settings is Gemma3Config and name.startswith(UNUSED):
                continue
            stored = name if name in checkpoint else TIED_NAMES.get(name, name)
            target.copy_(checkpoint.load(stored))
    return module
