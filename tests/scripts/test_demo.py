"""`make demo` runs commands that telecine takes."""

from __future__ import annotations

import sys

import demo
import pytest
from demo_model.settings import UPSCALER


@pytest.mark.parametrize(
    ("model", "more", "seeds"),
    [
        ("", [], ["0"]),
        ("", ["--seed", "3", "--num-frames", "49"], ["3"]),
        ("folder", [], []),
        ("folder", ["--seed", "1"], ["1"]),
    ],
)
def test_its_stages(model: str, more: list[str], seeds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stages: dict[str, list[str]] = {}

    def record(stage: str, command: list[str]) -> float:
        stages[stage] = command
        return 0.0

    monkeypatch.setattr(demo, "run", record)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--model", model, "--prompt", "a red ball", "--", *more])
    demo.main()
    generate = stages["generate"]
    assert [generate[index + 1] for index, word in enumerate(generate) if word == "--seed"] == seeds
    assert generate[len(generate) - len(more) :] == more
    # What is verified is what was exported: with the demo model's upsampler.
    assert (str(UPSCALER) in stages["verify"]) == (not model)
