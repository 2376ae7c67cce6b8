"""LTX-2's sound: the audio VAE's decoder and the vocoder as graphs, and what the host needs of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2Vocoder, LTX2VocoderWithBWE
from diffusers.pipelines.ltx2.vocoder import UpSample1d
from torch import Tensor, nn
from torch.nn import functional

from telecine.errors import SourceError
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2.checks import RATIO, check_audio_vae, check_vocoder
from telecine_export.families.ltx2.vae_patches import patch_vocoder, repeat_edges, upsample
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source
from telecine_export.timesteps import TorchFrequencies

Config = Mapping[str, Any]

VOCODERS: Mapping[str, Any] = {kind.__name__: kind for kind in (LTX2Vocoder, LTX2VocoderWithBWE)}


class AudioDecoderGraph(nn.Module):
    """(B, C, S, M) latents of the audio VAE's scale → (B, channels, 4S-3, mel bins)."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder: Any = AutoencoderKLLTX2Audio.from_config(config).decoder.eval().to(dtype)
        self.dtype = dtype

    def forward(self, latents: Tensor) -> Tensor:
        """LTX2AudioDecoder.forward; its cuts and pads to 4S-3 frames of all bins change nothing here (`checks`)."""
        decoder = self.decoder
        hidden = decoder.conv_in(latents.to(self.dtype))
        hidden = decoder.mid.block_2(decoder.mid.attn_1(decoder.mid.block_1(hidden, temb=None)), temb=None)
        for level in reversed(range(decoder.num_resolutions)):
            stage = decoder.up[level]
            for block in stage.block:
                hidden = block(hidden, temb=None)
            if level:
                hidden = stage.upsample(hidden)
        return decoder.conv_out(decoder.non_linearity(decoder.norm_out(hidden))).float()


class Resampler(TorchFrequencies):
    """UpSample1d with a filter that torch computed: checkpoints have none of it."""

    def __init__(self, original: UpSample1d, ratio: int) -> None:
        with torch.device("cpu"):
            computed: Any = UpSample1d(ratio=ratio, window_type="hann").filter
            super().__init__(computed)
        self.ratio, self.pad = ratio, original.pad
        self.cut = (original.pad_left, original.pad_right)

    def forward(self, samples: Tensor) -> Tensor:
        padded = repeat_edges(samples, 2, self.pad, self.pad)
        return upsample(padded, self.frequencies.to(samples.dtype), self.ratio)[..., self.cut[0] : -self.cut[1]]


class VocoderGraph(nn.Module):
    """(B, channels, T, mel bins) spectrograms → (B, channels, samples) in [-1, 1]."""

    def __init__(self, config: Config, kind: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.vocoder: Any = kind.from_config(config).eval().to(dtype)
        self.extends = kind is LTX2VocoderWithBWE
        if self.extends:
            ratio = config["output_sampling_rate"] // config["input_sampling_rate"]
            self.vocoder.resampler = Resampler(self.vocoder.resampler, ratio)
        patch_vocoder(self.vocoder)
        self.dtype = dtype

    def forward(self, mel: Tensor) -> Tensor:
        mel = mel.to(self.dtype)
        return (self._extended(mel) if self.extends else self.vocoder(mel)).float()

    def _extended(self, mel: Tensor) -> Tensor:
        """LTX2VocoderWithBWE.forward, whose pad to whole hops and cut change nothing (`check_vocoder`)."""
        vocoder = self.vocoder
        samples = vocoder.vocoder(mel)
        channels = samples.shape[1]
        stft = vocoder.mel_stft.stft_fn
        flat = functional.pad(samples.flatten(0, 1)[:, None], (stft.window_length - stft.hop_length, 0))
        real, imaginary = functional.conv1d(flat, stft.forward_basis, stride=stft.hop_length).chunk(2, dim=1)
        magnitude = torch.sqrt(real**2 + imaginary**2)
        bands = torch.log(torch.clamp(torch.matmul(vocoder.mel_stft.mel_basis, magnitude), min=1e-5))
        residual = vocoder.bwe_generator(bands.unflatten(0, (-1, channels)).transpose(2, 3))
        return torch.clamp(residual + vocoder.resampler(samples), -1, 1)


def audio_vae_config(source: Source) -> dict[str, Any]:
    return complete(AutoencoderKLLTX2Audio, source.config("audio_vae"))


def vocoder_class(source: Source) -> Any:
    """
    Raises:
        SourceError: a vocoder of another kind.
    """
    name = source.config("vocoder").get("_class_name", LTX2Vocoder.__name__)
    if name not in VOCODERS:
        raise SourceError(
            f"{source.component('vocoder').origin} is a {name}",
            expected=f"one of {', '.join(VOCODERS)}",
            fix="This model cannot be exported.",
        )
    return VOCODERS[name]


def vocoder_config(source: Source) -> dict[str, Any]:
    return complete(vocoder_class(source), source.config("vocoder"))


def audio_vae_decoder_spec(source: Source) -> GraphSpec:
    """
    Raises:
        SourceError: a configuration that diffusers cannot run, or one without a graph contract.
    """
    config = audio_vae_config(source)
    check_audio_vae(source.component("audio_vae").origin, config)
    channels, bins = config["latent_channels"], config["mel_bins"]
    return GraphSpec(
        component="audio_vae_decoder",
        build=lambda dtype: AudioDecoderGraph(config, dtype),
        sample={"latents": torch.zeros(2, channels, 5, bins // RATIO)},
        axes={"latents": {0: "batch", 2: "audio_tokens"}},
        output="mel",
        output_shape=("batch", config["output_channels"], f"{RATIO}*audio_tokens-{RATIO - 1}", bins),
        checkpoint="audio_vae",
    )


def vocoder_spec(source: Source) -> GraphSpec:
    """
    Raises:
        SourceError: as `audio_vae_decoder_spec`.
    """
    kind, config, audio = vocoder_class(source), vocoder_config(source), audio_vae_config(source)
    check_vocoder(source.component("vocoder").origin, config, audio)
    channels, bins = audio["output_channels"], audio["mel_bins"]
    return GraphSpec(
        component="vocoder",
        build=lambda dtype: VocoderGraph(config, kind, dtype),
        sample={"mel": torch.zeros(2, channels, 9, bins)},
        axes={"mel": {0: "batch", 2: "mel_frames"}},
        output="audio",
        output_shape=("batch", config["out_channels"], f"{samples_of_a_frame(config)}*mel_frames"),
        checkpoint="vocoder",
        rename=lambda name: name.removeprefix("vocoder."),
    )


def samples_of_a_frame(config: Config) -> int:
    """How many samples a frame of the spectrogram becomes."""
    samples = math.prod(config["upsample_factors"])
    if "input_sampling_rate" not in config:
        return samples
    return samples * config["output_sampling_rate"] // config["input_sampling_rate"]


def host(source: Source) -> dict[str, Any]:
    """What the NumPy side needs: how long sounds are, statistics of their latents, what decoding them takes."""
    audio, vocoder = audio_vae_config(source), vocoder_config(source)
    with source.checkpoint("audio_vae") as weights:
        statistics = {f"audio_{name}": weights.load(name).float().tolist() for name in ("latents_mean", "latents_std")}
    return {
        "audio": {
            "sampling_rate": audio["sample_rate"],
            "hop_length": audio["mel_hop_length"],
            "temporal": RATIO,
            "mel": RATIO,
            "mel_bins": audio["mel_bins"],
            "channels": audio["latent_channels"],
            "sample_rate": vocoder["output_sampling_rate"],
        },
        **statistics,
        "widest_activations": widest_activations(source),
    }


def widest_activations(source: Source) -> dict[str, float]:
    """Values of the largest activation of each graph: for a latent along time, and for a frame of the spectrogram."""
    audio, config, kind = audio_vae_config(source), vocoder_config(source), vocoder_class(source)
    length = 16
    with torch.device("meta"):
        graphs: dict[str, tuple[nn.Module, Tensor]] = {
            "audio_vae_decoder": (
                AudioDecoderGraph(audio, torch.float32),
                torch.empty(1, audio["latent_channels"], length, audio["mel_bins"] // RATIO),
            ),
            "vocoder": (
                VocoderGraph(config, kind, torch.float32),
                torch.empty(1, audio["output_channels"], length, audio["mel_bins"]),
            ),
        }
    widest = {}
    for name, (graph, given) in graphs.items():
        sizes: list[int] = []
        for module in graph.modules():
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d)):
                module.register_forward_hook(lambda _, inputs, made, into=sizes: into.append(made.numel()))
        with torch.no_grad():
            graph(given)
        widest[name] = max(sizes) / length
    return widest
