"""Measure what exporting a real-size network takes: seconds, CPU seconds, anonymous memory, bytes.

    python scripts/measure_export_memory.py [--size 2b|13b|cogvideox-2b|... | --vae 0.9.0|0.9.1|0.9.5|cogvideox]
                                            [--precision fp16|fp32] [--out DIR] [--keep] [--json]

Sizes are of LTX-Video's transformers, or of CogVideoX' by their releases: cogvideox-2b, -5b, -5b-I2V, -1.5-5b, ...

Writes a checkpoint of random weights in the real configuration (fp16, diffusers' layout), a tensor at a time, then
exports the transformer, or the VAE's encoder and decoder, in a fresh process, so that the memory is the export's
alone. 2b needs 8 GB of free disk at fp16, 13b 52 GB, cogvideox-5b 23 GB, a VAE 6 GB; both folders are removed
afterwards unless `--keep`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import diffusers
import torch

from telecine_export import cogvideox, cogvideox_releases, cogvideox_vae, ltx_video
from telecine_export.export import Progress, export_component
from telecine_export.graphs import PRECISIONS, GraphSpec
from telecine_export.ltx_video_releases import TRANSFORMER_2B, TRANSFORMER_13B, VAE_090, VAE_091, VAE_095
from telecine_export.source import Source

TRANSFORMERS = {"2b": TRANSFORMER_2B, "13b": TRANSFORMER_13B} | {
    f"cogvideox-{name}": config for name, config in cogvideox_releases.TRANSFORMERS.items()
}
VAES = {"0.9.0": VAE_090, "0.9.1": VAE_091, "0.9.5": VAE_095, "cogvideox": cogvideox_releases.VAE}
# By diffusers' class: each component that is made of the weights, with its graphs.
GRAPHS: Mapping[str, tuple[Callable[[Any], list[GraphSpec]], ...]] = {
    "LTXVideoTransformer3DModel": (lambda config: [ltx_video.transformer(config)],),
    "AutoencoderKLLTXVideo": (
        lambda config: [ltx_video.vae_encoder(config)],
        lambda config: [ltx_video.vae_decoder(config)],
    ),
    "CogVideoXTransformer3DModel": (lambda config: [cogvideox.transformer(config)],),
    "AutoencoderKLCogVideoX": (cogvideox_vae.encoder_graphs, cogvideox_vae.decoder_graphs),
}
STORED, STORED_NAME = torch.float16, "F16"
SHARD = 5 * 10**9  # bytes; larger checkpoints are split, with an index, as save_pretrained does
PIECE = 1 << 24  # elements that are drawn at a time
FILE = "diffusion_pytorch_model"


def main() -> None:
    arguments = parse_arguments()
    component = "vae" if arguments.vae else "transformer"
    if arguments.checkpoint:
        print(json.dumps(measure(arguments.checkpoint, component, arguments.out, arguments.precision)))
        return
    what = f"vae {arguments.vae}" if arguments.vae else arguments.size
    out = Path(tempfile.mkdtemp(prefix="telecine-measure-", dir=arguments.out))
    try:
        (out / "bundle").mkdir()
        config = VAES[arguments.vae] if arguments.vae else TRANSFORMERS[arguments.size]
        build = getattr(diffusers, config["_class_name"]).from_config
        write_checkpoint(out / "checkpoint" / component, build, config)
        reports = measure_in_fresh_process(out)
    finally:
        if arguments.keep:
            print(f"kept {out}", file=sys.stderr)
        else:
            shutil.rmtree(out)
    if arguments.json:
        print(json.dumps([{"size": what, "precision": arguments.precision, **report} for report in reports], indent=2))
        return
    for report in reports:
        print(
            f"{what} {report['component']} at {arguments.precision}: {report['parameters']:,} parameters, "
            f"{report['seconds']:.1f} s ({report['cpu_seconds']:.1f} s of CPU), "
            f"peak anonymous memory {report['peak_memory'] / 1e6:.0f} MB, "
            f"weights {report['weights_size'] / 1e9:.2f} GB, graph {report['graph_size'] / 1e6:.2f} MB"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the export of a real-size network.")
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--size", choices=list(TRANSFORMERS), default="2b", help="The transformer of this size.")
    network.add_argument("--vae", choices=list(VAES), help="The VAE of this release.")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp16")
    parser.add_argument("--out", type=Path, help="Where to make a temporary folder; default: the system's.")
    parser.add_argument("--keep", action="store_true", help="Keep the checkpoint and the exported component.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    # How this script calls itself: export into OUT from this checkpoint, and print JSON.
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_checkpoint(folder: Path, build: Callable[[Any], Any], config: Mapping[str, Any]) -> None:
    """Write a model of random fp16 weights to `folder`; one piece of a tensor is in memory."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = build(config)
    model.save_config(folder)
    shards = list(split(model.state_dict()))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        suffix = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        path = folder / f"{FILE}{suffix}.safetensors"
        print(f"writing {path}", file=sys.stderr)
        write_safetensors(path, shard)
        index |= dict.fromkeys(shard, path.name)
    if len(shards) > 1:
        total = sum(tensor.numel() for shard in shards for tensor in shard.values()) * STORED.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / f"{FILE}.safetensors.index.json").write_text(json.dumps(content))


def split(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Shards of at most SHARD bytes, in the order of the tensors."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        bytes_of = tensor.numel() * STORED.itemsize
        if shard and size + bytes_of > SHARD:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += bytes_of
    yield shard


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Random values in the shapes of `tensors`; safetensors' own writer would want them all in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * STORED.itemsize
        header[name] = {"dtype": STORED_NAME, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            write_noise(file, tensor)


def write_noise(file: BinaryIO, tensor: torch.Tensor) -> None:
    scale = math.prod(tensor.shape[1:]) ** -0.5
    for start in range(0, tensor.numel(), PIECE):
        noise = torch.empty(min(PIECE, tensor.numel() - start)).uniform_(-scale, scale)
        file.write(noise.to(STORED).numpy().data.cast("B"))


def measure_in_fresh_process(out: Path) -> list[dict[str, Any]]:
    """This very call again, over the checkpoint."""
    command = [sys.executable, *sys.argv, "--checkpoint", str(out / "checkpoint"), "--out", str(out / "bundle")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


def measure(checkpoint: Path, component: str, folder: Path, precision: str) -> list[dict[str, Any]]:
    """Export the graphs of a component of `checkpoint` into `folder`, and say what each took."""
    reports: list[Any] = []
    source = Source(root=checkpoint, pipeline_class="LTXPipeline")
    results: list[dict[str, Any]] = []
    config = source.config(component)
    for graphs in GRAPHS[config["_class_name"]]:
        start, cpu_before = time.monotonic(), cpu_seconds() if results else 0.0  # the first one's has the imports
        written = export_component(
            source,
            folder,
            graphs(config),
            precision=precision,
            opset=23,
            progress=Progress(finished=reports.append),
        )
        results.append(
            {
                "component": reports[-1].name,
                "parameters": written.parameters,
                "seconds": time.monotonic() - start,
                "cpu_seconds": cpu_seconds() - cpu_before,
                "peak_memory": reports[-1].peak_memory,
                "weights_size": written.weights.size,
                "graph_size": sum(graph.file.size for graph in written.graphs.values()),
            }
        )
    return results


def cpu_seconds() -> float:
    """Of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
