"""Train the demo model's text encoder to know what a caption says; then it is frozen, as T5 is in LTX-Video."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from demo_model.data import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SPEEDS, Scene, caption, combinations, sample_scene
from demo_model.networks import MORE_TEXT
from demo_model.training import Training

LENGTH = 128  # of the padded prompt, which T5 attends to, unmasked as in the pipelines
LENGTHS = (32, 64, 128)
BATCH = 64
# What a caption may say of its clip. The last answer of each is that it says nothing.
ANSWERS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "speed": tuple(SPEEDS),
    "first background": tuple(BACKGROUNDS),
    "second background": tuple(BACKGROUNDS),
}


def said(scene: Scene, rng: np.random.Generator) -> tuple[str, list[int]]:
    """A prompt for the scene, and the number of each answer that it gives.

    Mostly a whole caption; now and then a few words only, as in negative prompts, or none.
    """
    values = {
        "colour": scene.colour,
        "shape": scene.shape,
        "motion": scene.motion,
        "speed": scene.speed,
        "first background": scene.backgrounds[0],
        "second background": scene.backgrounds[1],
    }
    text = caption(scene, rng)
    kept = {name for name in ANSWERS if name not in ("first background", "second background")}
    if scene.backgrounds[0] in text.lower() and scene.backgrounds[1] in text.lower():
        kept |= {"first background", "second background"}
    chance = rng.random()
    if chance < 0.05:
        text, kept = ("" if rng.random() < 0.6 else MORE_TEXT[0]), set()
    elif chance < 0.15:
        kept = {("colour", "shape")[i] for i in range(2) if rng.random() < 0.6}
        words = [values[name] for name in ("colour", "shape") if name in kept]
        text = " ".join(words)
    numbers = [list(answers).index(values[name]) if name in kept else len(answers) for name, answers in ANSWERS.items()]
    return text, numbers


def embed(
    text_encoder: Any, tokenizer: Any, texts: list[str], length: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L, D) embeddings and (B, L) mask of prompts that are padded to `length`.

    What is returned ends at the longest text: the mask hides the rest from the transformer anyway.
    """
    tokens = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask.to(device)
    longest = int(mask.sum(dim=1).max())
    states = text_encoder(tokens.input_ids.to(device)).last_hidden_state
    return states[:, :longest], mask[:, :longest]


class Examinee(torch.nn.Module):
    """A text encoder, and the linear layer by which every token's state answers every question; then it goes."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.counts = [len(answers) + 1 for answers in ANSWERS.values()]
        self.heads = torch.nn.Linear(text_encoder.config.d_model, sum(self.counts))

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        """(N, D) states to (N, answers) of each question."""
        return list(self.heads(states).split(self.counts, dim=-1))


def text_encoder_training(examinee: Examinee, tokenizer: Any, *, steps: int, device: torch.device) -> Training:
    """Captions to what they say."""
    examinee.to(device)
    choices = combinations(held_out=False)

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng(step)
        texts, numbers = zip(*(said(sample_scene(rng, choices), rng) for _ in range(BATCH)), strict=True)
        states, mask = embed(examinee.text_encoder, tokenizer, list(texts), int(rng.choice(LENGTHS)), device)
        truth = torch.tensor(numbers, device=device)[:, None].expand(-1, states.shape[1], -1)[mask.bool()]
        answers = examinee(states[mask.bool()])
        losses = [torch.nn.functional.cross_entropy(answer, truth[:, i]) for i, answer in enumerate(answers)]
        return torch.stack(losses).sum()

    return Training("text_encoder", examinee, loss, steps, 1e-3)


def pads_training(student: Any, teacher: Any, tokenizer: Any, *, steps: int, device: torch.device) -> Training:
    """The text encoder learns to give what it gives at LENGTH tokens at other lengths too, and where pads are masked.

    `LTXPipeline` lets T5 attend to pads, `LTXConditionPipeline` masks them: one transformer has to serve both.
    """
    student.to(device)
    teacher.to(device).requires_grad_(False)
    choices = combinations(held_out=False)

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng(step)
        texts = [said(sample_scene(rng, choices), rng)[0] for _ in range(BATCH // 2)]
        with torch.no_grad():
            wanted, mask = embed(teacher, tokenizer, texts, LENGTH, device)
        short = tokenizer(texts, padding=True, max_length=LENGTH, truncation=True, return_tensors="pt").to(device)
        masked = student(short.input_ids, attention_mask=short.attention_mask).last_hidden_state
        padded, _ = embed(student, tokenizer, texts, int(rng.choice((LENGTH, 2 * LENGTH))), device)
        kept = mask.bool()
        losses = [torch.nn.functional.mse_loss(states[kept], wanted[kept]) for states in (masked, padded)]
        return torch.stack(losses).sum()

    return Training("pads", student, loss, steps, 5e-4)
