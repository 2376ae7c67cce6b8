"""LTX-Video's networks in their real configurations, with random weights that are made while they are written."""

from __future__ import annotations

import math
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.families.ltx_video.decode import InjectedNoise
from telecine.families.ltx_video.host import NoiseLevel
from telecine.families.ltx_video.names import TIED_NAMES
from telecine.manifest import Component, Graph
from telecine.noise import second_stream
from telecine.rope import grid_index, make_tables, video_positions
from telecine.shapes import Grid, LatentShape
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.export import DEFAULT_OPSET, Progress, export_component
from telecine_export.families.ltx_video import networks, upsampler
from telecine_export.families.ltx_video.precision import POLICIES
from telecine_export.families.ltx_video.releases import (
    T5_XXL,
    TRANSFORMER_2B,
    TRANSFORMER_13B,
    VAE_090,
    VAE_091,
    VAE_095,
)
from telecine_export.families.t5 import text_encoder
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source
from telecine_export.verify.ltx_video_run import seeded_globally
from telecine_export.verify.modules import MODULES

Array = npt.NDArray[Any]
Config = Mapping[str, Any]
Feeds = dict[str, Array]

SEED = 0
# Of every activation at fp8: calibrating random weights at these sizes would measure nothing.
AMAX = 16.0
SPATIAL: Config = {"spatial_upsample": True, "temporal_upsample": False}
TEMPORAL: Config = {"spatial_upsample": False, "temporal_upsample": True}
# A video as small as shows something: 240 tokens, and 9 frames of 64 x 64.
TOKENS, CLIP, LATENTS = (
    LatentShape(frames=3, height=8, width=10),
    LatentShape(frames=2, height=2, width=2),
    LatentShape(frames=2, height=4, width=4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A graph over a component of a checkpoint, in a configuration; what it is run on."""

    checkpoint: str
    settings: Config
    graph: Callable[[Any], GraphSpec]
    latent: LatentShape
    precision: str = "fp32"

    def module(self) -> Any:
        """diffusers' or transformers' module, without weights."""
        with torch.device("meta"):
            if self.checkpoint == "text_encoder":
                return T5EncoderModel(T5Config(**self.settings))
            return MODULES[self.checkpoint].from_config(dict(self.settings))

    def config(self) -> dict[str, Any]:
        """Complete: with diffusers' defaults for what the settings leave out."""
        return dict(self.settings if self.checkpoint == "text_encoder" else self.module().config)


def _upsampler(config: Config) -> GraphSpec:
    return upsampler.latent_upsampler(config, latent_channels=config["in_channels"])


def _transformer(settings: Config, precision: str) -> Network:
    return Network(
        checkpoint="transformer", settings=settings, graph=networks.transformer, latent=TOKENS, precision=precision
    )


NETWORKS: Mapping[str, Network] = {
    **{
        f"latent_upsampler {name}": Network(
            checkpoint="latent_upsampler", settings=settings, graph=_upsampler, latent=LATENTS
        )
        for name, settings in {"spatial": SPATIAL, "temporal": TEMPORAL}.items()
    },
    **{
        f"{name} {release}": Network(checkpoint="vae", settings=settings, graph=graph, latent=CLIP)
        for release, settings in {"0.9.0": VAE_090, "0.9.1": VAE_091, "0.9.5": VAE_095}.items()
        for name, graph in {"vae_encoder": networks.vae_encoder, "vae_decoder": networks.vae_decoder}.items()
    },
    # As wide as T5-XXL, with 4 of its 24 layers: all are alike.
    "text_encoder 4 layers": Network(
        checkpoint="text_encoder", settings={**T5_XXL, "num_layers": 4}, graph=text_encoder, latent=CLIP
    ),
    "transformer 2B": _transformer(TRANSFORMER_2B, "fp32"),
    "transformer 13B": _transformer(TRANSFORMER_13B, "fp16"),  # its fp32 weights alone are 52 GB
}


class RandomCheckpoint(Checkpoint):
    """bfloat16 weights of a network, each drawn when it is asked for, always the same; none is kept."""

    def __init__(self, network: Network) -> None:
        self.origin = Path(f"a random {network.checkpoint}")
        self._shapes = {name: tuple(tensor.shape) for name, tensor in network.module().state_dict().items()}

    def names(self) -> Collection[str]:
        return self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def stored_as(self, name: str) -> str:
        return "BF16"

    def load(self, name: str) -> Tensor:
        """Scales around 1 for normalisations, else uniform with a deviation that falls with the inputs summed over."""
        shape = self._shapes[name]
        one = min(name, TIED_NAMES.get(name, name))
        generator = torch.Generator().manual_seed(zlib.crc32(one.encode()))
        low, high = 0.5, 1.5
        if len(shape) != 1 or not name.endswith("weight"):
            high = math.prod(shape[1:] or shape) ** -0.5
            low = -high
        return torch.empty(shape, dtype=torch.bfloat16).uniform_(low, high, generator=generator)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class RandomComponent:
    """A network as a component of a source that lies nowhere."""

    network: Network

    @property
    def origin(self) -> Path:
        return Path(f"a random {self.network.checkpoint}")

    def config(self) -> dict[str, Any]:
        return self.network.config()

    def checkpoint(self) -> Checkpoint:
        return RandomCheckpoint(self.network)


def export(network: Network, folder: Path) -> tuple[Component, dict[str, Any]]:
    """Export into `folder/COMPONENT`, past ONNX's checker; and what it took."""
    source = Source(
        root=Path("random"), pipeline_class="LTXPipeline", components={network.checkpoint: RandomComponent(network)}
    )
    reports: list[Any] = []
    spec = network.graph(network.config())
    start = time.monotonic()
    written = export_component(
        source,
        folder,
        [spec],
        precision=network.precision,
        opset=DEFAULT_OPSET,
        progress=Progress(finished=reports.append),
        policy=POLICIES[spec.component],
        amax={spec.role: defaultdict(lambda: AMAX)},
    )
    return written, {
        "precision": network.precision,
        "parameters": written.parameters,
        "weights_size": written.weights.size,
        "export_seconds": time.monotonic() - start,
        "export_peak": reports[0].peak_memory,
    }


def run(network: Network, folder: Path, written: Component) -> dict[str, Any]:
    """One step on ONNX Runtime's CPU provider, and the same in torch's own module.

    `difference` is the largest, in deviations of what torch makes.
    """
    inputs = feeds(network)
    got, seconds = _on_onnxruntime(written.graphs["main"], folder, inputs)
    with torch.no_grad(), seeded_globally(SEED):
        expected = _reference(network, load(network), inputs).numpy()
    if network.checkpoint == "vae" and expected.shape != got.shape:
        expected = expected[:, : got.shape[1]]  # diffusers repeats the one log-variance
    if not np.isfinite(got).all() or got.shape != expected.shape:
        raise ValueError(f"{got.shape} values, of which {np.isfinite(got).sum()} finite; expected {expected.shape}")
    return {
        "run_on": " ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in list(inputs.items())[:1]),
        "run_seconds": seconds,
        "difference": float(np.abs(got - expected).max() / expected.std()),
    }


def _on_onnxruntime(graph: Graph, folder: Path, inputs: Feeds) -> tuple[Array, float]:
    with OnnxRuntimeSession.load(
        graph, folder / graph.file.path, device="cpu", options=OnnxRuntimeOptions(memory_arena=False)
    ) as session:
        start = time.monotonic()
        (made,) = session.run(inputs).values()
        return made, time.monotonic() - start


def load(network: Network) -> nn.Module:
    """torch's module of the same weights, float32."""
    model: nn.Module = network.module()
    checkpoint = RandomCheckpoint(network)
    state = {name: checkpoint.load(name).float() for name in checkpoint.names()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def feeds(network: Network) -> Feeds:
    """Random inputs of the graph, of one video."""
    config, latent = network.config(), network.latent
    random = np.random.default_rng(SEED)

    def normal(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32)

    spec = network.graph(config)
    if spec.component == "transformer":
        frequencies = networks.rope_frequencies(config).numpy()
        rope = make_tables(video_positions(latent, Grid(spatial=32, temporal=8), 25.0), grid_index(latent), frequencies)
        return {
            "hidden_states": normal(1, latent.tokens, config["in_channels"]),
            "encoder_hidden_states": normal(1, 16, config["caption_channels"]),
            "encoder_attention_mask": (np.arange(16) < 11).astype(np.float32)[np.newaxis],
            "timestep": np.array([[700.0]], np.float32),
            "rope_cos": rope.cos,
            "rope_sin": rope.sin,
            "rope_index": rope.index,
            "stg_mode": np.zeros((config["num_layers"], 1), np.int32),
        }
    if spec.component == "text_encoder":
        return {"input_ids": random.integers(0, config["vocab_size"], (1, 16))}
    if spec.component == "vae_encoder":
        video = latent.video(Grid(spatial=32, temporal=8))
        return {"video": np.tanh(normal(1, 3, video.num_frames, video.height, video.width))}
    channels = config["in_channels"] if spec.component == "latent_upsampler" else config["latent_channels"]
    inputs = {"latents": normal(*latent.array_shape(1, channels))}
    if "timestep" in spec.sample:
        inputs["timestep"] = np.array([0.05], np.float32)
    if spec.component == "vae_decoder":
        levels = tuple(NoiseLevel(scale, maps) for scale, maps in networks.decoder_noise(config).items())
        inputs |= InjectedNoise(levels, second_stream(SEED), inputs["latents"], fresh=False).whole
    return inputs


def _reference(network: Network, model: Any, inputs: Feeds) -> Tensor:
    """What diffusers' module makes of the inputs of a graph."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if "input_ids" in tensors:
        embeds: Tensor = model(tensors["input_ids"]).last_hidden_state
        return embeds
    if "video" in tensors:
        moments: Tensor = model.encode(tensors["video"]).latent_dist.parameters
        return moments
    if network.checkpoint == "vae":
        frames: Tensor = model.decode(tensors["latents"], tensors.get("timestep")).sample
        return frames
    if network.checkpoint == "latent_upsampler":
        larger: Tensor = model(tensors["latents"])
        return larger
    latent = network.latent
    (velocity,) = model(
        **{name: tensor for name, tensor in tensors.items() if not name.startswith(("rope", "stg"))},
        num_frames=latent.frames,
        height=latent.height,
        width=latent.width,
        rope_interpolation_scale=(8 / 25.0, 32, 32),
        return_dict=False,
    )
    made: Tensor = velocity
    return made


def memory_to_run(report: Mapping[str, Any]) -> int:
    """Bytes that a step takes: ONNX Runtime computes in float32, and holds some weights twice while it loads."""
    return int(report["parameters"] * 4 * 1.5) + 2**30


def available_memory() -> int:
    """Bytes that this machine can give now."""
    if not sys.platform.startswith("linux"):
        raise OSError("reads /proc/meminfo: needs Linux")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
