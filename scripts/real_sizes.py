"""Networks of all families as they really are, with random weights that are made while they are written."""

from __future__ import annotations

import math
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import real_cogvideox
import real_ltx2
import real_ltx_video
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.families.names import TIED_NAMES
from telecine.manifest import Component
from telecine.shapes import LatentShape
from telecine_export.checkpoints.checkpoint import Checkpoint
from telecine_export.export import DEFAULT_OPSET, Progress, export_component
from telecine_export.families.cogvideox.precision import POLICIES as COGVIDEOX_POLICIES
from telecine_export.families.ltx2.precision import POLICIES as LTX2_POLICIES
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
from telecine_export.precision.policy import Policy
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
    """The graphs over a component of a checkpoint, in a configuration; what they are run on.

    A network of several graphs is a half of a VAE that runs in chunks.
    """

    checkpoint: str
    settings: Config
    graphs: Callable[[Any], list[GraphSpec]]
    latent: LatentShape
    precision: str = "fp32"

    @property
    def is_cogvideox(self) -> bool:
        return "CogVideoX" in self.settings.get("_class_name", "")

    @property
    def is_ltx2(self) -> bool:
        return "LTX2" in self.settings.get("_class_name", "")

    @property
    def policies(self) -> Mapping[str, Policy]:
        return LTX2_POLICIES if self.is_ltx2 else COGVIDEOX_POLICIES if self.is_cogvideox else POLICIES

    def module(self) -> Any:
        """diffusers' or transformers' module, without weights."""
        with torch.device("meta"):
            if self.checkpoint == "text_encoder":
                return T5EncoderModel(T5Config(**self.settings))
            kind = getattr(diffusers, self.settings.get("_class_name", ""), MODULES[self.checkpoint])
            return kind.from_config(dict(self.settings))

    def config(self) -> dict[str, Any]:
        """Complete: with diffusers' defaults for what the settings leave out."""
        return dict(self.settings if self.checkpoint == "text_encoder" else self.module().config)


def _upsampler(config: Config) -> GraphSpec:
    return upsampler.latent_upsampler(config, latent_channels=config["in_channels"])


def _alone(graph: Callable[[Any], GraphSpec]) -> Callable[[Any], list[GraphSpec]]:
    """Of a component with one graph."""
    return lambda config: [graph(config)]


def _transformer(settings: Config, precision: str) -> Network:
    return Network(
        checkpoint="transformer",
        settings=settings,
        graphs=_alone(networks.transformer),
        latent=TOKENS,
        precision=precision,
    )


NETWORKS: Mapping[str, Network] = {
    **{
        f"latent_upsampler {name}": Network(
            checkpoint="latent_upsampler", settings=settings, graphs=_alone(_upsampler), latent=LATENTS
        )
        for name, settings in {"spatial": SPATIAL, "temporal": TEMPORAL}.items()
    },
    **{
        f"{name} {release}": Network(checkpoint="vae", settings=settings, graphs=_alone(graph), latent=CLIP)
        for release, settings in {"0.9.0": VAE_090, "0.9.1": VAE_091, "0.9.5": VAE_095}.items()
        for name, graph in {"vae_encoder": networks.vae_encoder, "vae_decoder": networks.vae_decoder}.items()
    },
    # As wide as T5-XXL, with 4 of its 24 layers: all are alike.
    "text_encoder 4 layers": Network(
        checkpoint="text_encoder", settings={**T5_XXL, "num_layers": 4}, graphs=_alone(text_encoder), latent=CLIP
    ),
    "transformer 2B": _transformer(TRANSFORMER_2B, "fp32"),
    "transformer 13B": _transformer(TRANSFORMER_13B, "fp16"),  # its fp32 weights alone are 52 GB
    **{
        name: Network(checkpoint=checkpoint, settings=config, graphs=graphs, latent=latent, precision=precision)
        for name, (checkpoint, config, graphs, latent, precision) in (
            real_cogvideox.settings() | real_ltx2.settings()
        ).items()
    },
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
    specs = network.graphs(network.config())
    start = time.monotonic()
    written = export_component(
        source,
        folder,
        specs,
        precision=network.precision,
        opset=DEFAULT_OPSET,
        progress=Progress(finished=reports.append),
        policy=network.policies[specs[0].component],
        amax={spec.role: defaultdict(lambda: AMAX) for spec in specs},
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
    got, seconds = _on_onnxruntime(network, written, folder, inputs)
    with torch.no_grad(), seeded_globally(SEED):
        expected = [each.numpy() for each in _reference(network, load(network), inputs)]
    return {
        "run_on": " ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in list(inputs.items())[:1]),
        "run_seconds": seconds,
        "difference": max(_difference(*each) for each in zip(got, expected, strict=True)),
    }


def _difference(got: Array, expected: Array) -> float:
    """The largest, in deviations of what torch makes."""
    if expected.ndim == 5 and expected.shape != got.shape:
        expected = expected[:, : got.shape[1]]  # diffusers repeats the one log-variance
    if not np.isfinite(got).all() or got.shape != expected.shape:
        raise ValueError(f"{got.shape} values, of which {np.isfinite(got).sum()} finite; expected {expected.shape}")
    return float(np.abs(got - expected).max() / expected.std())


def _on_onnxruntime(network: Network, written: Component, folder: Path, inputs: Feeds) -> tuple[list[Array], float]:
    """What the graphs make, and in how many seconds once they are loaded."""
    with closing(Graphs(written, folder)) as graphs:
        component = network.graphs(network.config())[0].component
        if "main" in written.graphs:
            session = graphs.session(component)
            start = time.monotonic()
            made = list(session.run(inputs).values())
            return made, time.monotonic() - start
        half = real_cogvideox.CHUNKED[component]
        (source,) = inputs.values()
        for chunk in half.chunks(source.shape[2]):
            graphs.session(component, chunk.role)
        start = time.monotonic()
        return [half.run_whole(graphs, source)], time.monotonic() - start


class Graphs:
    """The graphs of one component, as `telecine.families.base.Models` has them."""

    def __init__(self, written: Component, folder: Path) -> None:
        self._written, self._folder = written, folder
        self._sessions: dict[str, OnnxRuntimeSession] = {}

    def session(self, component: str, role: str = "main") -> OnnxRuntimeSession:
        if role not in self._sessions:
            graph = self._written.graphs[role]
            self._sessions[role] = OnnxRuntimeSession.load(
                graph, self._folder / graph.file.path, device="cpu", options=OnnxRuntimeOptions(memory_arena=False)
            )
        return self._sessions[role]

    def helper(self, component: str) -> None:
        """None: all runs on the host."""

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()


def load(network: Network) -> nn.Module:
    """torch's module of the same weights, float32."""
    model: nn.Module = network.module()
    checkpoint = RandomCheckpoint(network)
    state = {name: checkpoint.load(name).float() for name in checkpoint.names()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def feeds(network: Network) -> Feeds:
    """Random inputs of the graphs, of one video."""
    config, random = network.config(), np.random.default_rng(SEED)
    spec = network.graphs(config)[0]
    if network.is_cogvideox:
        return real_cogvideox.feeds(config, spec.component, network.latent, random)
    if network.is_ltx2:
        return real_ltx2.feeds(config, network.latent, random)
    return real_ltx_video.feeds(config, spec, network.latent, random)


def _reference(network: Network, model: Any, inputs: Feeds) -> list[Tensor]:
    """What diffusers' module makes of the inputs of the graphs."""
    if network.is_ltx2:
        return real_ltx2.reference(model, network.latent, inputs)
    if network.is_cogvideox:
        return [real_cogvideox.reference(model, inputs)]
    return [real_ltx_video.reference(network.checkpoint, model, network.latent, inputs)]


def memory_to_run(report: Mapping[str, Any]) -> int:
    """Bytes that a step takes: ONNX Runtime computes in float32, and holds some weights twice while it loads."""
    return int(report["parameters"] * 4 * 1.5) + 2**30


def available_memory() -> int:
    """Bytes that this machine can give now."""
    if not sys.platform.startswith("linux"):
        raise OSError("reads /proc/meminfo: needs Linux")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
