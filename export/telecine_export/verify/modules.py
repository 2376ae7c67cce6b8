"""torch's side of a comparison: diffusers' and transformers' own modules, holding a source's weights at fp32.

A component folder is loaded by its class's own `from_pretrained`. What diffusers has no loader for (several parts,
fused LoRAs, quantised weights without their library) is its module filled with the tensors that export reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from telecine.families.names import TIED_NAMES
from telecine_export.components import FolderComponent
from telecine_export.families.upscaler import LATENT_UPSAMPLER
from telecine_export.source import Source
from telecine_export.tokenizer import load_tokenizer
from telecine_export.verify.checks import FP32, loading

# By component, where its configuration names none of diffusers' classes.
MODULES: Mapping[str, Any] = {
    "text_encoder": T5EncoderModel,
    "transformer": LTXVideoTransformer3DModel,
    "vae": AutoencoderKLLTXVideo,
    "latent_upsampler": LTXLatentUpsamplerModel,
    "scheduler": FlowMatchEulerDiscreteScheduler,
}
# What a pipeline for generation is made of.
PIPELINE_MODULES = ("text_encoder", "transformer", "vae")


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
    if own and all(_loads(source, component) for component in PIPELINE_MODULES):
        with loading(str(source.root)):
            return kind.from_pretrained(source.root, **FP32)
    return kind(
        scheduler=_class_of(source, "scheduler").from_config(source.config("scheduler")),
        tokenizer=load_tokenizer(source.tokenizer),
        **{component: load_module(source, component) for component in PIPELINE_MODULES},
    )


def _class_of(source: Source, component: str) -> Any:
    """The class that a component's configuration names."""
    return getattr(diffusers, source.config(component).get("_class_name", ""), MODULES[component])


def _loads(source: Source, component: str) -> bool:
    """Whether `from_pretrained` of the component's folder gives what was exported, with no other library."""
    part = source.component(component)
    fused = component == "transformer" and bool(source.loras)
    return isinstance(part, FolderComponent) and not fused and not part.is_quantised()


def _filled(source: Source, component: str) -> nn.Module:
    config, kind = source.config(component), _class_of(source, component)
    module: nn.Module = kind(T5Config(**config)) if kind is T5EncoderModel else kind.from_config(config)
    with source.checkpoint(component) as checkpoint, torch.no_grad():
        for name, target in module.state_dict().items():  # one tensor at a time
            stored = name if name in checkpoint else TIED_NAMES.get(name, name)
            target.copy_(checkpoint.load(stored))
    return module
