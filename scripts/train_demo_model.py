"""Train the demo model from nothing: a very small LTX-Video of coloured shapes that move.

    python scripts/train_demo_model.py --work DIR --out CHECKPOINT

It goes on where a stopped run with the same `--work` ended, and writes loss curves (CSV, PNG) and sample pictures
there. Two processes take about two hours on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from demo_model.dataset import SIZES, Dataset, Size
from demo_model.networks import (
    make_text_encoder,
    make_tokenizer,
    make_transformer,
    make_upsampler,
    make_vae,
    save_checkpoint,
)
from demo_model.train_flow import transformer_training
from demo_model.train_text import Examinee, pads_training, text_encoder_training
from demo_model.train_upsampler import upsampler_training
from demo_model.train_vae import OUTLINE_WEIGHT, decoder_training, encoder_training
from demo_model.training import load_averaged
from transformers import T5Tokenizer


@dataclass(frozen=True, slots=True)
class Run:
    """Where everything is, and for how many steps each network learns."""

    work: Path
    device: torch.device
    sizes: tuple[Size, ...] = SIZES
    decoder: int = 8000
    outlines: int = 8500
    encoder: int = 3500
    text_encoder: int = 1500
    pads: int = 600
    transformer: int = 9000
    upsampler: int = 1500

    @property
    def data(self) -> Dataset:
        return Dataset(self.work, self.sizes)

    def tokenizer(self) -> T5Tokenizer:
        return make_tokenizer(self.work / "tokenizer")

    def examinee(self) -> Examinee:
        return Examinee(make_text_encoder(len(self.tokenizer())))


def train_pictures(run: Run) -> None:
    """The decoder, first for the whole picture and then for outlines, and the encoder."""
    vae = make_vae()
    data, device = run.data, run.device
    decoder = decoder_training(vae, data, steps=run.decoder, device=device, name="decoder", rate=1e-3, outline_weight=0)
    decoder.run(run.work)
    outlines = decoder_training(
        vae, data, steps=run.outlines, device=device, name="outlines", rate=4e-4, outline_weight=OUTLINE_WEIGHT
    )
    outlines.run(run.work)
    encoder_training(vae, data, steps=run.encoder, device=device).run(run.work)


def train_flow(run: Run) -> None:
    """The text encoder, the transformer that attends to it, and the upsampler."""
    text_encoder_training(run.examinee(), run.tokenizer(), steps=run.text_encoder, device=run.device).run(run.work)
    examinee, teacher = run.examinee(), run.examinee()
    for each in (examinee, teacher):
        load_averaged(each, run.work / "text_encoder.pt")
    pads_training(examinee.text_encoder, teacher.text_encoder, run.tokenizer(), steps=run.pads, device=run.device).run(
        run.work
    )
    transformer_training(
        make_transformer(), examinee.text_encoder, run.tokenizer(), run.data, steps=run.transformer, device=run.device
    ).run(run.work)
    upsampler_training(make_upsampler(), run.data, steps=run.upsampler, device=run.device).run(run.work)


def seeded(chain: Callable[[Run], None], run: Run) -> None:
    """One chain of trainings in this process; two threads would wait for each other in every operator."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    chain(run)


def assemble(run: Run, out: Path) -> None:
    """Write the checkpoint of all that is trained."""
    vae, transformer, upsampler, examinee = make_vae(), make_transformer(), make_upsampler(), run.examinee()
    parts = {
        "outlines": vae.decoder,
        "encoder": vae.encoder,
        "transformer": transformer,
        "latent_upsampler": upsampler,
        "pads": examinee.text_encoder,
    }
    for name, network in parts.items():
        load_averaged(network, run.work / f"{name}.pt")
    save_checkpoint(
        out,
        vae=vae,
        text_encoder=examinee.text_encoder,
        tokenizer=run.tokenizer(),
        transformer=transformer,
        upsampler=upsampler,
    )


def train(run: Run, out: Path, *, jobs: int) -> None:
    """Draw the data, train everything, and write the checkpoint."""
    run.work.mkdir(parents=True, exist_ok=True)
    run.tokenizer()
    run.data.draw()
    chains = (train_flow, train_pictures)
    if jobs == 1:
        for chain in chains:
            seeded(chain, run)
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(seeded, chain, run) for chain in chains]:
                future.result()
    assemble(run, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model from nothing, or go on with it.")
    parser.add_argument("--work", type=Path, required=True, help="folder of data, states, curves and samples")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write, in diffusers' layout")
    parser.add_argument("--jobs", type=int, choices=(1, 2), default=2, help="processes; 1 on a GPU")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    run = Run(arguments.work, torch.device(arguments.device))
    train(run, arguments.out, jobs=arguments.jobs)


if __name__ == "__main__":
    main()
