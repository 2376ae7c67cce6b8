"""Build engines of real-size networks of LTX-Video by TensorRT for RTX, and print what that takes; no GPU is needed.

    python scripts/build_real_size.py [--network transformer|vae_decoder|text_encoder]... [--precision fp16]
                                      [--target rtx-sm89] [--workload 768x512x121] [--layers N] [--out DIR] [--keep]

The weights are random, in the real configuration: the 2B transformer, the VAE decoder of 0.9.5, and T5-XXL with
`--layers` of its 24 layers. Each build runs in a fresh process, so that the memory is the build's alone: a little
more than twice the plan, 9 GB for the transformer at fp16, and 8 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure_export_memory import write_checkpoint, write_safetensors
from transformers import T5Config, T5EncoderModel

from telecine.bundle import sha256
from telecine.inspection import show_bytes
from telecine.manifest import FILE_NAME, FORMAT, FileEntry, Manifest
from telecine_export import ltx_video
from telecine_export.export import Progress, export_component
from telecine_export.graphs import GraphSpec
from telecine_export.ltx_video_releases import DYNAMIC, KINDS, T5_XXL, TRANSFORMER_2B, VAE_095
from telecine_export.source import Source

# How the graph of each network is made, and the part of a checkpoint that it is made of.
GRAPHS: Mapping[str, tuple[Callable[[Any], GraphSpec], str]] = {
    "transformer": (ltx_video.transformer, "transformer"),
    "vae_decoder": (ltx_video.vae_decoder, "vae"),
    "text_encoder": (ltx_video.text_encoder, "text_encoder"),
}
WORKLOAD = "768x512x121"
TARGET = "rtx-sm89"
LAYERS = 4  # of T5: 9e8 parameters
FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Built:
    """What a build took: seconds, bytes of the plan, peak anonymous memory in bytes; the census of its tensors."""

    network: str
    parameters: int
    size: int
    seconds: float
    peak_memory: int
    precisions: Mapping[str, int]
    layers: int


def main() -> None:
    parser = argparse.ArgumentParser(description="Build engines of real-size networks with random weights.")
    parser.add_argument("--network", action="append", choices=list(GRAPHS), help="Default: all three, one by one.")
    parser.add_argument("--precision", default="fp16", help="Of telecine's export.")
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--workload", default=WORKLOAD)
    parser.add_argument("--layers", type=int, default=LAYERS, help="Of T5-XXL's 24.")
    parser.add_argument("--out", type=Path, help="Where to make a temporary folder; default: the system's.")
    parser.add_argument("--keep", action="store_true", help="Keep the bundles and their engines.")
    arguments = parser.parse_args()
    for network in arguments.network or GRAPHS:
        out = Path(tempfile.mkdtemp(prefix="telecine-build-", dir=arguments.out))
        try:
            bundle = make_bundle(network, out, precision=arguments.precision, layers=arguments.layers)
            built = build(bundle, network, target=arguments.target, workload=arguments.workload)
        finally:
            if not arguments.keep:
                shutil.rmtree(out)
        print(as_text(built, arguments.precision, arguments.target), flush=True)


def as_text(built: Built, precision: str, target: str) -> str:
    tensors = ", ".join(f"{count} {dtype}" for dtype, count in built.precisions.items())
    return (
        f"{built.network} at {precision} for {target}: {built.parameters:,} parameters, {built.seconds:.0f} s, "
        f"peak anonymous memory {show_bytes(built.peak_memory)}, plan {show_bytes(built.size)}, "
        f"{built.layers} layers, tensors: {tensors}"
    )


def make_bundle(network: str, out: Path, *, precision: str, layers: int) -> Path:
    """A bundle of one network, with random weights and no tokenizer to speak of: nothing can be generated with it."""
    source = make_source(network, out / "source", layers)
    bundle = out / "bundle"
    (bundle / "tokenizer").mkdir(parents=True)
    tokenizer = bundle / "tokenizer" / "tokenizer.json"
    tokenizer.write_text("{}")
    spec = graph(network, source)
    component = export_component(source, bundle, [spec], precision=precision, opset=23, progress=Progress())
    manifest = Manifest(
        format=FORMAT,
        family="ltx-video",
        variant="0.9.5",
        pipeline=source.pipeline_class,
        components={network: component},
        tokenizer=FileEntry(path="tokenizer/tokenizer.json", size=2, sha256=sha256(tokenizer)),
        host=ltx_video.host(source),
        presets={},
        versions={},
    )
    (bundle / FILE_NAME).write_text(manifest.dump(), encoding="utf-8")
    shutil.rmtree(source.root)
    return bundle


def make_source(network: str, root: Path, layers: int) -> Source:
    """A checkpoint with the weights of one network, and the configurations of all."""
    t5 = {**T5_XXL, "num_layers": layers}
    configs = {"transformer": TRANSFORMER_2B, "vae": VAE_095, "text_encoder": t5}
    for name, config in configs.items():
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(dict(config)))
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(DYNAMIC)))
    if network == "text_encoder":
        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**t5))
        write_safetensors(root / "text_encoder" / FILE, model.state_dict())
    elif network == "transformer":
        shutil.rmtree(root / "transformer")
        write_checkpoint(root / "transformer", KINDS["transformer"].build, TRANSFORMER_2B)
    if network == "vae_decoder":
        shutil.rmtree(root / "vae")
        write_checkpoint(root / "vae", KINDS["vae"].build, VAE_095)
    else:  # the host's statistics are read from there
        statistics = {name: torch.empty(128, device="meta") for name in ("latents_mean", "latents_std")}
        write_safetensors(root / "vae" / FILE, statistics)
    return Source(root=root, pipeline_class="LTXPipeline")


def graph(network: str, source: Source) -> GraphSpec:
    make, component = GRAPHS[network]
    return make(source.config(component))


def build(bundle: Path, network: str, *, target: str, workload: str) -> Built:
    """`telecine build`, in a process of its own."""
    command = [sys.executable, "-c", "from telecine.cli import main; main()", "build", str(bundle)]
    command += ["--target", target, "--workload", workload, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (entry,) = json.loads(done.stdout)
    manifest = Manifest.parse((bundle / FILE_NAME).read_text(encoding="utf-8"), where=str(bundle))
    return Built(
        network=network,
        parameters=manifest.components[network].parameters,
        size=entry["size"],
        seconds=entry["seconds"],
        peak_memory=entry["peak_memory"],
        precisions=entry["precisions"],
        layers=entry["layers"],
    )


if __name__ == "__main__":
    main()
