"""How every network of the demo model is trained: a resumable loop, averaged weights, curves, contact sheets."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

WARM_UP = 100  # steps
SAVE_EVERY = 500  # steps


def ramp(step: int, steps: int) -> float:
    """The learning rate's factor: linear at first, then a half cosine down to 2 %."""
    return min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@dataclass(frozen=True, slots=True)
class Training:
    """What one network learns: `loss` of a seeded step, in `steps` steps of AdamW.

    `sample`, where it is given, draws what the network has learnt to a picture.
    """

    name: str
    network: torch.nn.Module
    loss: Callable[[int], torch.Tensor]
    steps: int
    rate: float
    sample: Callable[[Path], None] | None = None

    def run(self, work: Path) -> None:
        """Train, or go on from `work`/NAME.pt; the network ends with its averaged weights."""
        parameters = list(self.network.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01)
        ema = Ema(parameters)
        parts = {"network": self.network, "optimizer": optimizer, "ema": ema}
        step = load_state(work / f"{self.name}.pt", parts)
        log = Log(work / f"{self.name}.csv", step=step)
        while step < self.steps:
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                group["lr"] = self.rate * ramp(step, self.steps)
            loss = self.loss(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            ema.update(parameters)
            step += 1
            log.add(step, loss.item())
            if step % SAVE_EVERY == 0 or step == self.steps:
                save_state(work / f"{self.name}.pt", parts, step)
                log.plot(self.name)
                if self.sample is not None:
                    with ema.applied(parameters):
                        self.sample(work / f"{self.name}-sample.png")
        ema.copy_to(parameters)


def load_averaged(network: torch.nn.Module, path: Path) -> None:
    """Give the network the averaged weights of the training that ended, or stopped, at `path`."""
    shadow = torch.load(path, weights_only=True, map_location="cpu")["ema"]["shadow"]
    for parameter, value in zip(network.parameters(), shadow, strict=True):
        parameter.data.copy_(value)


def save_state(path: Path, parts: dict[str, Any], step: int) -> None:
    """Write every part's state dict, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, temporary)
    os.replace(temporary, path)


def load_state(path: Path, parts: dict[str, Any]) -> int:
    """Restore what `save_state` wrote; returns the steps done, 0 where there is nothing."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


class Ema:
    """A running average of parameters, quicker at first."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float = 0.999) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = [p.detach().clone() for p in parameters]

    def update(self, parameters: list[torch.nn.Parameter]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], 1 - decay)

    def copy_to(self, parameters: list[torch.nn.Parameter]) -> None:
        for parameter, shadow in zip(parameters, self.shadow, strict=True):
            parameter.data.copy_(shadow)

    @contextmanager
    def applied(self, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        """The parameters hold the average inside, and their own values again after."""
        own = [p.detach().clone() for p in parameters]
        self.copy_to(parameters)
        try:
            yield
        finally:
            for parameter, value in zip(parameters, own, strict=True):
                parameter.data.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.shadow = state["updates"], state["shadow"]


class Log:
    """The loss's mean over 20 steps, appended to a CSV file, printed with the time, and drawn as a curve."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Go on after `step`: rows past it were of steps that a stopped run did not save."""
        self.path, self.pending, self.start = path, list[float](), (step, time.monotonic())
        rows = path.read_text().splitlines()[1:] if path.exists() else []
        rows = [row for row in rows if int(row.split(",")[0]) <= step]
        path.write_text("\n".join(["step,loss", *rows]) + "\n")

    def add(self, step: int, loss: float) -> None:
        self.pending.append(loss)
        if len(self.pending) < 20:
            return
        mean = float(np.mean(self.pending))
        self.pending.clear()
        with self.path.open("a") as file:
            file.write(f"{step},{mean:.6g}\n")
        if step % 100 == 0:
            pace = (time.monotonic() - self.start[1]) / (step - self.start[0])
            print(f"{self.path.stem}: step {step}, loss {mean:.5g}, {pace:.3f} s a step", flush=True)

    def plot(self, name: str, width: int = 640, height: int = 320) -> None:
        """Draw the loss over the steps, logarithmically, beside the CSV file."""
        lines = self.path.read_text().splitlines()[1:]
        if len(lines) < 2:
            return
        rows = np.array([[float(value) for value in line.split(",")] for line in lines])
        x, y = rows[:, 0], np.log10(np.maximum(rows[:, 1], 1e-9))
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        across = 40 + (x - x.min()) / max(np.ptp(x), 1e-9) * (width - 60)
        along = 20 + (y.max() - y) / max(np.ptp(y), 1e-9) * (height - 50)
        draw.line([(float(a), float(b)) for a, b in zip(across, along, strict=True)], fill=(200, 40, 40))
        draw.text((4, 4), f"{name} loss: {10 ** y.max():.4g} to {10 ** y.min():.4g} (log scale)", fill="black")
        draw.text((4, height - 16), f"steps: {x.min():.0f} to {x.max():.0f}", fill="black")
        image.save(self.path.with_suffix(".png"))


def contact_sheet(clips: npt.NDArray[np.float32], path: Path, columns: int = 2) -> None:
    """Write (N, F, H, W, 3) clips in [-1, 1] as rows of five frames each, `columns` clips side by side."""
    picked = clips[:, np.linspace(0, clips.shape[1] - 1, 5).round().astype(int)]
    strips = np.concatenate(list(picked.transpose(1, 0, 2, 3, 4)), axis=2)  # (N, H, 5W, 3)
    sheet = np.concatenate(
        [np.concatenate(list(strips[i : i + columns]), axis=1) for i in range(0, len(strips), columns)], axis=0
    )
    Image.fromarray(np.clip((sheet + 1) * 127.5, 0, 255).round().astype(np.uint8)).save(path)
