"""The two models: the repository's trained one, and the real-size 2B with random weights; telecine's and diffusers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from demo_model.settings import CHECKPOINT, SETTINGS

from gpu_checks.plan import check_size, size_of
from telecine.atomic import atomic_folder
from telecine.bench.settings import PROMPT

SEED = 0
# What the real-size transformer is given in place of T5-XXL's: (1, 128, 4096) embeddings, none of them padding.
TEXT = (1, 128, 4096)
REAL_NETWORKS = ("transformer", "vae_decoder")


def export_demo(folder: str, precision: str) -> str:
    """Export the demo model; what is there stays. Returns what to say of it."""
    path = Path(folder) / precision
    if not path.exists():
        from telecine_export.export import export_bundle
        from telecine_export.source import open_source

        reference = None if precision == "fp32" else Path(folder) / "fp32"
        known = reference if reference is not None and reference.exists() else None
        export_bundle(open_source(str(CHECKPOINT)), path, precision=precision, reference=known)
    return f"{path}"


def export_real_size(folder: str, precision: str) -> str:
    """Export the real-size transformer and decoder with random weights; what is there stays."""
    path = Path(folder) / precision
    if not path.exists():
        from build_real_size import make_bundle

        with atomic_folder(path, overwrite=False) as partial:
            make_bundle(REAL_NETWORKS, partial, precision=precision)
    return f"{path}"


def check_request(model: str) -> dict[str, Any]:
    """Parameters of `generate` that checks compare frames of."""
    if model == "demo":
        return {**SETTINGS, "prompt": PROMPT, "negative_prompt": "worst quality", "seed": SEED}
    return {
        **size_of(check_size(model)), "num_inference_steps": 2, "guidance_scale": 3.0, "decode_timestep": 0.05,
        "decode_noise_scale": 0.025, "seed": SEED, **(prompts(model) or {}),
    }  # fmt: skip


def prompts(model: str) -> dict[str, Any] | None:
    """Embeddings in place of texts, by `generate`'s names; none where there is a text encoder."""
    if model == "demo":
        return None
    random = np.random.default_rng(SEED)
    positive, negative = (random.standard_normal(TEXT, dtype=np.float32) for _ in range(2))
    mask = np.ones(TEXT[:2], np.float32)
    return {
        "prompt_embeds": positive, "prompt_attention_mask": mask,
        "negative_prompt_embeds": negative, "negative_prompt_attention_mask": mask,
    }  # fmt: skip


def diffusers_pipeline(model: str, precision: str) -> Any:
    """diffusers' pipeline of the same weights, on the CPU."""
    from telecine_export.bench.competitor import DTYPES, open_pipeline

    if model == "demo":
        return open_pipeline(str(CHECKPOINT), precision)
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline
    from real_sizes import NETWORKS, load

    from telecine_export.families.ltx_video.releases import DYNAMIC

    transformer, vae = (load(NETWORKS[name]).to(DTYPES[precision]) for name in ("transformer 2B", "vae_decoder 0.9.5"))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(DYNAMIC))
    return LTXPipeline(scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer)


def diffusers_prompts(model: str, precision: str, device: str) -> Mapping[str, Any] | None:
    """`prompts` as tensors on a device."""
    given = prompts(model)
    if given is None:
        return None
    import torch

    from telecine_export.bench.competitor import DTYPES

    return {name: torch.from_numpy(array).to(device, DTYPES[precision]) for name, array in given.items()}
