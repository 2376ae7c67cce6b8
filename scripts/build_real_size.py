"""Build engines of real-size networks of LTX-Video by TensorRT for RTX, and print what that takes; no GPU is needed.

    python scripts/build_real_size.py [--network transformer|vae_decoder|text_encoder]... [--precision fp16]
                                      [--target rtx-sm89] [--workload 768x512x121] [--out DIR] [--keep]

The weights are random, in the real configuration: the 2B transformer, the VAE decoder of 0.9.5, and T5-XXL with
4 of its 24 layers. Each build runs in a fresh process, so that the memory is the build's alone: a little
more than twice the plan, 9 GB for the transformer at fp16, and 8 GB of disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from real_sizes import NETWORKS, Network, RandomComponent, export

from telecine.bundle import sha256
from telecine.inspection import show_bytes
from telecine.manifest import FILE_NAME, FORMAT, FileEntry, Manifest
from telecine_export.components import FileComponent
from telecine_export.families.ltx_video import networks
from telecine_export.families.ltx_video.releases import DYNAMIC
from telecine_export.source import Source

CHOICES: Mapping[str, Network] = {
    "transformer": NETWORKS["transformer 2B"],
    "vae_decoder": NETWORKS["vae_decoder 0.9.5"],
    "text_encoder": NETWORKS["text_encoder 4 layers"],
}
WORKLOAD = "768x512x121"
TARGET = "rtx-sm89"


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
    parser.add_argument("--network", action="append", choices=list(CHOICES), help="Default: all three, one by one.")
    parser.add_argument("--precision", default="fp16", help="Of telecine's export.")
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--workload", default=WORKLOAD)
    parser.add_argument("--out", type=Path, help="Where to make a temporary folder; default: the system's.")
    parser.add_argument("--keep", action="store_true", help="Keep the bundles and their engines.")
    arguments = parser.parse_args()
    for network in arguments.network or CHOICES:
        out = Path(tempfile.mkdtemp(prefix="telecine-build-", dir=arguments.out))
        try:
            bundle = make_bundle([network], out / "bundle", precision=arguments.precision)
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


def make_bundle(chosen: Sequence[str], bundle: Path, *, precision: str) -> Path:
    """A bundle of some networks, with random weights and no tokenizer to speak of: prompts must come as embeddings."""
    (bundle / "tokenizer").mkdir(parents=True)
    tokenizer = bundle / "tokenizer" / "tokenizer.json"
    tokenizer.write_text("{}")
    components = {
        network: export(dataclasses.replace(CHOICES[network], precision=precision), bundle)[0] for network in chosen
    }
    described = Source(
        root=Path("random"),
        pipeline_class="LTXPipeline",
        components={
            "transformer": RandomComponent(CHOICES["transformer"]),
            "vae": RandomComponent(CHOICES["vae_decoder"]),
            "scheduler": FileComponent(Path("random"), DYNAMIC, {}),
        },
    )
    manifest = Manifest(
        format=FORMAT,
        family="ltx-video",
        variant="0.9.5",
        pipeline=described.pipeline_class,
        components=components,
        tokenizer=FileEntry(path="tokenizer/tokenizer.json", size=2, sha256=sha256(tokenizer)),
        host=networks.host(described),
        presets={},
        versions={},
    )
    (bundle / FILE_NAME).write_text(manifest.dump(), encoding="utf-8")
    return bundle


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
