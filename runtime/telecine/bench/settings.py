"""What a benchmark asks of every competitor: the same request, as often, on as many threads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from telecine.errors import RequestError

PROMPT = "a red ball rolls to the left over a dark green floor"
# Whatever library multiplies the matrices, it reads one of these.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The work: parameters of `generate` by diffusers' names, and how it is repeated.

    `threads`: of one operator, on every side. `warmups`: runs of each competitor that are not counted. `device`: "cpu",
    "cuda", "cuda:N", on every side; "auto" is the CPU, but for networks that have engines. What is None is not asked.
    `further` are parameters of the model's family.

    Raises:
        RequestError: nothing to measure.
    """

    prompt: str = PROMPT
    negative_prompt: str = "worst quality, blurry"
    height: int
    width: int
    num_frames: int
    num_inference_steps: int = 8
    guidance_scale: float = 3.0
    decode_timestep: float | None = 0.05
    decode_noise_scale: float | None = 0.025
    output_type: str = "np"
    seed: int = 0
    repeats: int = 5
    warmups: int = 1
    threads: int
    device: str = "auto"
    further: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("warmups", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise RequestError(
                    f"{name} is {getattr(self, name)}", expected=f"{least} or more", fix=f"Use {max(least, 3)}."
                )
        if self.num_inference_steps < 2:
            raise RequestError(
                f"num_inference_steps is {self.num_inference_steps}",
                expected="2 or more: a step is timed from the end of the one before",
                fix="Use 8.",
            )

    def request(self, prompts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Parameters that `Pipeline.generate` and diffusers' `__call__` share; `prompts` stand in for the texts."""
        names = [each.name for each in dataclasses.fields(self)]
        values = {name: getattr(self, name) for name in names[: names.index("seed")] if getattr(self, name) is not None}
        values |= self.further
        return values if prompts is None else values | {"prompt": None, "negative_prompt": None, **prompts}

    def of_family(self, refuses: Collection[str], further: Mapping[str, Any]) -> Settings:
        """The same, without what a family does not take, and with what it takes beside that."""
        own = {each.name for each in dataclasses.fields(self)}
        nothing: dict[str, Any] = dict.fromkeys(own.intersection(refuses))
        return dataclasses.replace(self, **nothing, further=dict(further))

    @property
    def on_gpu(self) -> bool:
        """Whether every side runs on a GPU."""
        return self.device.startswith("cuda")

    def environment(self) -> dict[str, str]:
        """This process' environment, for one that is to use so many threads; modules are compiled as in any
        installation."""
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(self.threads))
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        return environment

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Settings:
        """What `dataclasses.asdict` made of settings."""
        return cls(**content)
