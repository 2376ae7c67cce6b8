"""A tiny LTX-2 in torch: diffusers' own transformer, around which everything else is a stand-in.

The pipelines of diffusers run it whole; tests hand the same transformer to telecine's loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2VideoTransformer3DModel

from telecine.families.ltx2.positions import spread

LATENT_CHANNELS, AUDIO_CHANNELS, MEL_BINS = 4, 2, 8
FREQUENCIES = {"rope": 3, "audio_rope": 1, "cross_attn_rope": 1}  # axes of each
CONFIG: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 2,
    "caption_channels": 16,
    "rope_type": "split",
    "rope_double_precision": True,
}
NEWER: dict[str, Any] = {  # as 2.3
    "gated_attn": True,
    "audio_gated_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "perturbed_attn": True,
    "use_prompt_embeddings": False,
}


def make_transformer(**config: Any) -> LTX2VideoTransformer3DModel:
    torch.manual_seed(0)
    transformer = LTX2VideoTransformer3DModel(**CONFIG | config).eval()
    with torch.no_grad():  # modulations of 0 would hide what the network is told
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return transformer


def rope_host(transformer: LTX2VideoTransformer3DModel) -> dict[str, Any]:
    """The manifest's `rope`, with torch's frequencies."""
    config = transformer.config
    return {
        "scale_factors": list(config.vae_scale_factors),
        "extent": [config.pos_embed_max_pos, config.base_height, config.base_width],
        "causal_offset": config.causal_offset,
        "audio_scale_factor": config.audio_scale_factor,
        "audio_sampling_rate": config.audio_sampling_rate,
        "audio_hop_length": config.audio_hop_length,
        "audio_extent": config.audio_pos_embed_max_pos,
        **{
            name: frequencies(getattr(transformer, rope).dim, axes, double=config.rope_double_precision)
            for name, (rope, axes) in zip(
                ("frequencies", "audio_frequencies", "cross_frequencies"), FREQUENCIES.items(), strict=True
            )
        },
    }


def frequencies(width: int, axes: int, *, double: bool) -> np.ndarray:
    """As in `LTX2AudioVideoRotaryPosEmbed.forward`."""
    dtype = torch.float64 if double else torch.float32
    powers = torch.pow(10000.0, torch.linspace(0.0, 1.0, width // (2 * axes), dtype=dtype))
    return (powers * torch.pi / 2.0).to(torch.float32).numpy()


def make_host(transformer: LTX2VideoTransformer3DModel, **changes: Any) -> dict[str, Any]:
    """What a manifest would tell of the stand-ins below."""
    vae, audio_vae = Vae(), AudioVae()
    return {
        "spatial_ratio": 32,
        "temporal_ratio": 8,
        "latent_channels": LATENT_CHANNELS,
        "latents_mean": vae.latents_mean.tolist(),
        "latents_std": vae.latents_std.tolist(),
        "scaling_factor": 1.0,
        "timestep_conditioning": False,
        "audio": {
            "sampling_rate": 16000,
            "hop_length": 160,
            "temporal": 4,
            "mel": 4,
            "mel_bins": MEL_BINS,
            "channels": AUDIO_CHANNELS,
            "sample_rate": 24000,
        },
        "audio_latents_mean": audio_vae.latents_mean.tolist(),
        "audio_latents_std": audio_vae.latents_std.tolist(),
        "text_channels": 16,
        "text_heads": 4,
        "connectors": {
            "registers": None,
            "base_length": 4096,
            "frequencies": [1.0],
            "audio_frequencies": [1.0],
        },
        "transformer_blocks": transformer.config.num_layers,
        "perturbed_attention": transformer.config.perturbed_attn,
        "rope": rope_host(transformer),
        "scheduler": dict(FlowMatchEulerDiscreteScheduler(**SCHEDULER).config),
        "audio_scheduler": None,
        "widest_activations": dict.fromkeys(
            ("text_encoder", "vae_encoder", "vae_decoder", "audio_vae_decoder", "vocoder"), 1.0
        ),
        "least_sides": {"vae_encoder": 1, "vae_decoder": 1},
        **changes,
    }


SCHEDULER: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


class Part(torch.nn.Module):
    """What the pipelines ask of every network."""

    device, dtype = torch.device("cpu"), torch.float32


class Vae(Part):
    """Latents are means of a video's pixels: of 32 x 32, and of 8 frames but for the first."""

    spatial_compression_ratio, temporal_compression_ratio = 32, 8
    config = SimpleNamespace(scaling_factor=1.0, timestep_conditioning=False)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.latents_mean = torch.randn(LATENT_CHANNELS, generator=generator)
        self.latents_std = 0.5 + torch.rand(LATENT_CHANNELS, generator=generator)

    def encode(self, video: torch.Tensor) -> Any:
        channels = torch.cat([video, video[:, :1] * video[:, 1:2]], dim=1)
        frames = [channels[:, :, :1], *channels[:, :, 1:].split(8, dim=2)]
        small = [torch.nn.functional.avg_pool3d(each, (each.shape[2], 32, 32)) for each in frames if each.shape[2]]
        latents = torch.cat(small, dim=2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


class AudioVae(Part):
    mel_compression_ratio, temporal_compression_ratio = 4, 4
    config = SimpleNamespace(sample_rate=16000, mel_hop_length=160, mel_bins=MEL_BINS, latent_channels=AUDIO_CHANNELS)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.latents_mean = torch.randn(4, generator=generator)
        self.latents_std = 0.5 + torch.rand(4, generator=generator)


class Connectors(Part):
    """The text as it is, for the sound its first channels; and a mask of ones, as diffusers' own give."""

    def __init__(self, audio_channels: int) -> None:
        super().__init__()
        self.audio_channels = audio_channels

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor, padding_side: str) -> tuple[torch.Tensor, ...]:
        return embeds, embeds[..., : self.audio_channels], torch.ones_like(mask)


def audio_text_channels(transformer: LTX2VideoTransformer3DModel) -> int:
    """Models of 2.0 project both texts themselves."""
    config = transformer.config
    return config.caption_channels if config.use_prompt_embeddings else config.audio_cross_attention_dim


def make_pipeline(pipeline: Any, transformer: LTX2VideoTransformer3DModel, **scheduler: Any) -> Any:
    made = pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or SCHEDULER)),
        vae=Vae(),
        audio_vae=AudioVae(),
        text_encoder=None,
        tokenizer=None,
        connectors=Connectors(audio_text_channels(transformer)),
        transformer=transformer,
        vocoder=None,
    )
    made.set_progress_bar_config(disable=True)
    return made


TRANSFORMER_INPUTS = (
    "hidden_states", "audio_hidden_states", "encoder_hidden_states", "audio_encoder_hidden_states", "timestep",
    "audio_timestep", "sigma", "audio_sigma", "cross_timestep", "audio_cross_timestep", "perturbation_mask",
    "modality_mask",
)  # fmt: skip


class TorchSession:
    """diffusers' transformer behind the inputs and outputs of telecine's graph (`families.ltx2.transformer`).

    What the graph is to do with its inputs is done here with diffusers' flags: rows of a call are of one pass.
    """

    def __init__(self, transformer: LTX2VideoTransformer3DModel) -> None:
        self._transformer, self._bound = transformer, {}
        self.inputs = TRANSFORMER_INPUTS  # of a graph of 2.3, which reads all of them

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def bind(self, name: str, buffer: np.ndarray) -> None:
        assert buffer.flags.c_contiguous
        self._bound[name] = buffer

    def unbind(self) -> None:
        self._bound.clear()

    def enqueue(self) -> None:
        feeds = {name: torch.from_numpy(array) for name, array in self._bound.items()}
        perturbed = (feeds["perturbation_mask"] == 0).all(dim=1)
        assert ((feeds["perturbation_mask"] == 1).all(dim=1) | perturbed).all()
        isolated = not feeds["modality_mask"].all()
        assert not (isolated and feeds["modality_mask"].any())
        with torch.no_grad(), self._inside(feeds):
            velocities = self._transformer(
                **{
                    name: feeds[name]
                    for name in (
                        "hidden_states", "audio_hidden_states", "encoder_hidden_states",
                        "audio_encoder_hidden_states", "timestep", "audio_timestep", "sigma", "audio_sigma",
                    )
                },
                video_coords=torch.zeros(1, 3, 1),
                audio_coords=torch.zeros(1, 1, 1),
                spatio_temporal_guidance_blocks=perturbed.nonzero().flatten().tolist(),
                isolate_modalities=isolated,
                return_dict=False,
            )  # fmt: skip
        for name, made in zip(("velocity", "audio_velocity"), velocities, strict=True):
            self._bound[name][:] = made.numpy()

    @contextmanager
    def _inside(self, feeds: dict[str, torch.Tensor]) -> Iterator[None]:
        """Positions and cross timesteps from the feeds, in place of what diffusers makes of coordinates and flags."""
        model = self._transformer
        index = feeds["rope_index"].long()
        gather = {
            "rope": (model.rope, lambda table: table[torch.arange(3), index]),
            "audio_rope": (model.audio_rope, lambda table: table[:, None]),
            "cross_rope": (model.cross_attn_rope, lambda table: table[index[:, 0]][:, None]),
            "cross_audio_rope": (model.cross_attn_audio_rope, lambda table: table[:, None]),
        }
        with ExitStack() as stack:
            for name, (module, gathered) in gather.items():
                tables = tuple(
                    self._laid_out(module, gathered(feeds[f"{name}_{kind}"]).numpy(), identity, len(feeds["sigma"]))
                    for kind, identity in (("cos", 1), ("sin", 0))
                )
                hook = module.register_forward_hook(lambda *_, tables=tables: tables)
                stack.callback(hook.remove)
            for name, side in (("cross_timestep", "video"), ("audio_cross_timestep", "audio")):
                gate = getattr(model, f"av_cross_attn_{side}_{'a2v' if side == 'video' else 'v2a'}_gate")
                scale = model.config.cross_attn_timestep_scale_multiplier / model.config.timestep_scale_multiplier
                told = feeds[name].flatten()
                for module, value in (
                    (getattr(model, f"av_cross_attn_{side}_scale_shift"), told), (gate, told * scale),
                ):  # fmt: skip
                    hook = module.register_forward_pre_hook(
                        lambda _, args, kwargs, value=value: ((value, *args[1:]), kwargs), with_kwargs=True
                    )
                    stack.callback(hook.remove)
            yield

    @staticmethod
    def _laid_out(module: Any, gathered: np.ndarray, identity: float, rows: int) -> torch.Tensor:
        columns = spread(gathered, module.dim, module.rope_type, identity)
        if module.rope_type == "interleaved":
            laid_out = np.repeat(columns, 2, axis=-1)
        else:
            laid_out = columns.reshape(len(columns), module.num_attention_heads, -1).transpose(1, 0, 2)
        return torch.from_numpy(np.repeat(laid_out[np.newaxis], rows, axis=0))
