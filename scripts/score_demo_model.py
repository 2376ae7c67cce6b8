"""Score the demo model: does a clip show the colour, shape and direction that its prompt names?

    python scripts/score_demo_model.py BUNDLE [--pairs 100]

The clips come from the torch-free runtime, their prompts from combinations that were never trained; what they show is
measured by plain image code. The same clips held against each other's prompts, and clips made without guidance, say
what the scores are worth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from demo_model.data import Scene, caption, combinations, sample_scene
from demo_model.measure import Measurement, measure
from demo_model.settings import SETTINGS

import telecine

FLOORS = {"colour": 95.0, "direction": 90.0, "shape": 80.0}
BATCH = 10


def cases(count: int) -> list[tuple[Scene, str, int]]:
    """`count` scenes of held-out combinations, each in its turn, with a caption and a seed."""
    rng = np.random.default_rng(2026)
    held_out = combinations(held_out=True)
    scenes = [sample_scene(rng, [held_out[i % len(held_out)]]) for i in range(count)]
    return [(scene, caption(scene, rng), 1000 + i) for i, scene in enumerate(scenes)]


def measured(pipe: Any, prompts: list[str], seeds: list[int], *, guidance: float, steps: int) -> list[Measurement]:
    """Generate a clip of each prompt and seed, and measure it."""
    found: list[Measurement] = []
    for i in range(0, len(prompts), BATCH):
        result = pipe.generate(
            prompts[i : i + BATCH],
            seed=seeds[i : i + BATCH],
            **SETTINGS | {"guidance_scale": guidance, "num_inference_steps": steps},
        )
        found += [measure(clip) for clip in result.frames]
    return found


def score(found: list[Measurement], scenes: list[Scene]) -> dict[str, float]:
    """Per cent right of colour, direction and shape."""
    pairs = list(zip(found, scenes, strict=True))
    right = {
        "colour": [m.colour == s.colour for m, s in pairs],
        "direction": [m.direction == s.motion for m, s in pairs],
        "shape": [m.shape == s.shape for m, s in pairs],
    }
    return {name: round(100.0 * float(np.mean(values)), 1) for name, values in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Score prompts by measuring the clips that telecine generates.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=SETTINGS["num_inference_steps"])
    parser.add_argument("--guidance-scale", type=float, default=SETTINGS["guidance_scale"])
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args()

    scenes, prompts, seeds = (list(part) for part in zip(*cases(arguments.pairs), strict=True))
    start = time.monotonic()
    with telecine.load(arguments.bundle) as pipe:
        guided = measured(pipe, prompts, seeds, guidance=arguments.guidance_scale, steps=arguments.steps)
        seconds = time.monotonic() - start
        unguided = measured(pipe, prompts, seeds, guidance=1.0, steps=arguments.steps)
    rows = {
        "prompts": score(guided, scenes),
        "guidance off": score(unguided, scenes),
        "prompts shuffled": score(guided, [*scenes[7:], *scenes[:7]]),  # each clip against another's prompt
    }
    passed = all(rows["prompts"][name] >= floor for name, floor in FLOORS.items())
    if arguments.json:
        print(json.dumps({"pairs": len(prompts), "scores": rows, "floors": FLOORS, "passed": passed}))
    else:
        print(f"| % right of {len(prompts)} | {' | '.join(FLOORS)} |\n|---|{'---|' * len(FLOORS)}")
        for name, values in rows.items():
            print(f"| {name} | {' | '.join(f'{values[key]:.0f}' for key in FLOORS)} |")
        print(f"| floor | {' | '.join(f'{floor:.0f}' for floor in FLOORS.values())} |")
        print(f"{seconds / len(prompts):.2f} s a clip", file=sys.stderr)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
