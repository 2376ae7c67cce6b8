"""Measure what exporting a real-size LTX-Video transformer takes: seconds, CPU seconds, anonymous memory, bytes.

    python scripts/measure_export_memory.py [--size 2b|13b] [--precision fp16|fp32] [--out DIR] [--keep] [--json]

Writes a checkpoint of random weights in the real configuration (fp16, diffusers' layout), a tensor at a time, then
exports the transformer in a fresh process, so that the memory is the export's alone. 2b needs 8 GB of free disk at
fp16, 13b 52 GB; both folders are removed afterwards unless `--keep`.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel

from telecine_export import ltx_video
from telecine_export.export import Progress, export_component
from telecine_export.graphs import PRECISIONS
from telecine_export.source import Source

# What the checkpoints on the hub say where they differ from the defaults of the diffusers class (0.9.0 and 0.9.7).
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "2b": {},
    "13b": {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096},
}
STORED, STORED_NAME = torch.float16, "F16"
SHARD = 5 * 10**9  # bytes; larger checkpoints are split, with an index, as save_pretrained does
PIECE = 1 << 24  # elements that are drawn at a time
FILE = "diffusion_pytorch_model"


def main() -> None:
    arguments = parse_arguments()
    if arguments.checkpoint:
        print(json.dumps(measure(arguments.checkpoint, arguments.out, arguments.precision)))
        return
    out = Path(tempfile.mkdtemp(prefix="telecine-measure-", dir=arguments.out))
    try:
        (out / "bundle").mkdir()
        write_checkpoint(out / "checkpoint", CONFIGS[arguments.size])
        report = measure_in_fresh_process(out, arguments.precision)
    finally:
        if arguments.keep:
            print(f"kept {out}", file=sys.stderr)
        else:
            shutil.rmtree(out)
    if arguments.json:
        print(json.dumps({"size": arguments.size, "precision": arguments.precision, **report}, indent=2))
    else:
        print(
            f"{arguments.size} at {arguments.precision}: {report['parameters']:,} parameters, "
            f"{report['seconds']:.1f} s ({report['cpu_seconds']:.1f} s of CPU), "
            f"peak anonymous memory {report['peak_memory'] / 1e6:.0f} MB, "
            f"weights {report['weights_size'] / 1e9:.2f} GB, graph {report['graph_size'] / 1e6:.2f} MB"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the export of a real-size LTX-Video transformer.")
    parser.add_argument("--size", choices=list(CONFIGS), default="2b")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp16")
    parser.add_argument("--out", type=Path, help="Where to make a temporary folder; default: the system's.")
    parser.add_argument("--keep", action="store_true", help="Keep the checkpoint and the exported component.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    # How this script calls itself: export into OUT from this checkpoint, and print JSON.
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_checkpoint(root: Path, config: Mapping[str, Any]) -> None:
    """Write a transformer of random fp16 weights to `root/transformer`; one piece of a tensor is in memory."""
    folder = root / "transformer"
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = LTXVideoTransformer3DModel(**config)
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


def measure_in_fresh_process(out: Path, precision: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--checkpoint", str(out / "checkpoint"), "--out", str(out / "bundle")]
    done = subprocess.run([*command, "--precision", precision], check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def measure(checkpoint: Path, folder: Path, precision: str) -> dict[str, Any]:
    """Export the transformer of `checkpoint` into `folder`, and say what it took."""
    reports: list[Any] = []
    source = Source(root=checkpoint, pipeline_class="LTXPipeline")
    specs = [ltx_video.transformer(source.config("transformer"))]
    start = time.monotonic()
    component = export_component(
        source, folder, specs, precision=precision, opset=23, progress=Progress(finished=reports.append)
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "parameters": component.parameters,
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,  # of the whole process: imports too
        "peak_memory": reports[0].peak_memory,
        "weights_size": component.weights.size,
        "graph_size": component.graphs["main"].file.size,
    }


if __name__ == "__main__":
    main()
