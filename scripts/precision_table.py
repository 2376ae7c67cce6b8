"""What each precision costs the demo model's pictures, next to what diffusers loses at the same dtype.

    python scripts/precision_table.py [--bundles DIR] [--json]

PSNR in dB of the same four clips with the same seeds, next to float32 on the same side: telecine's bundles at fp16,
bf16 and fp8 on ONNX Runtime's CPU provider (bf16, which has no kernels there, emulated: float32 arithmetic, each result
rounded), diffusers' pipeline under torch on the CPU. A row with one component has that one alone at the precision.
`--bundles` is a folder of bundles called fp32, fp16, bf16 and fp8, exported there where they are missing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from demo_model.settings import CHECKPOINT
from diffusers import LTXPipeline
from torch import nn

from telecine.bundle import Bundle
from telecine.picture_quality import Clip, psnr
from telecine.pipeline import Pipeline
from telecine_export.export import export_bundle
from telecine_export.families.ltx_video.precision import REQUEST
from telecine_export.precision.policy import PRECISIONS
from telecine_export.precision.trial_models import TrialModels
from telecine_export.precision.typed import Traces
from telecine_export.source import open_source

# Several prompts and seeds at once: one clip's rounding errors may cancel or add up, by decibels.
BATCH: dict[str, Any] = {
    **REQUEST,
    "prompt": [
        "a yellow square drifts upwards, against a dark blue wall",
        "a red ball rolls slowly to the left over a green floor",
        "a white circle gets bigger over a background that fades from brown to black",
        "an orange triangle slides to the right over a gray background",
    ],
    "negative_prompt": [REQUEST["negative_prompt"]] * 4,
    "seed": [7, 8, 9, 10],
}
COMPONENTS = ("text_encoder", "transformer", "vae_decoder")
WHOLE = "whole run"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
Row = dict[str, float]


def export_all(folder: Path) -> dict[str, Bundle]:
    """The demo model at every precision, of one trace; bundles that are there already are opened."""
    folder.mkdir(parents=True, exist_ok=True)
    source, traces = open_source(str(CHECKPOINT)), Traces(23)
    bundles: dict[str, Bundle] = {}
    for precision in PRECISIONS:
        path = folder / precision
        reference = None if precision == "fp32" else folder / "fp32"
        if path.exists():
            bundles[precision] = Bundle.open(path)
        else:
            bundles[precision] = export_bundle(source, path, precision=precision, traces=traces, reference=reference)
    return bundles


def ours(bundles: Mapping[str, Bundle]) -> dict[str, Row]:
    """PSNR of telecine's clips by precision, then by component."""

    def clip(candidate: Bundle | None = None, *components: str) -> Clip:
        with Pipeline(TrialModels(bundles["fp32"], candidate=candidate, candidates=components)) as pipe:
            frames: Clip | None = pipe.generate(**BATCH).frames
            assert frames is not None
            return frames

    exact = clip()
    return {
        precision: {
            **{name: psnr(clip(bundles[precision], name), exact) for name in COMPONENTS},
            WHOLE: psnr(clip(bundles[precision], *COMPONENTS), exact),
        }
        for precision in PRECISIONS[1:]
    }


def theirs() -> dict[str, Row]:
    """The same of diffusers, under torch: a whole run is its pipeline loaded at the dtype."""
    exact_pipe = _pipeline(torch.float32)
    exact, found = _clip(exact_pipe), dict[str, Row]()
    for precision, dtype in DTYPES.items():
        found[precision] = {}
        lowered = _pipeline(dtype)
        for name in COMPONENTS:
            with _alone(exact_pipe, lowered, name):
                found[precision][name] = psnr(_clip(exact_pipe), exact)
        found[precision][WHOLE] = psnr(_clip(lowered), exact)
    return found


def _pipeline(dtype: torch.dtype) -> Any:
    pipe: Any = LTXPipeline.from_pretrained(CHECKPOINT, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _clip(pipe: Any) -> Clip:
    request = {name: value for name, value in BATCH.items() if name != "seed"}
    made: Clip = pipe(**request, generator=[torch.Generator("cpu").manual_seed(seed) for seed in BATCH["seed"]]).frames
    return made


class Float32Edges(nn.Module):
    """Stands in for a network: computes in its dtype, takes and gives float32."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.inner, self.config = network, dtype, getattr(network, "config", None)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        # The transformer's timesteps stay: diffusers' own embedding casts what it makes of them.
        named = {name: value if name == "timestep" else _cast(value, self.inner) for name, value in named.items()}
        return _cast(self.network(*(_cast(value, self.inner) for value in inputs), **named), torch.float32)

    def cache_context(self, name: str) -> Any:
        return self.network.cache_context(name)


@contextmanager
def _alone(pipe: Any, lowered: Any, component: str) -> Iterator[None]:
    """A pipeline of float32 with one network of a lowered one."""
    owner, source = (pipe.vae, lowered.vae) if component == "vae_decoder" else (pipe, lowered)
    name = "decoder" if component == "vae_decoder" else component
    exact, network = getattr(owner, name), getattr(source, name)
    setattr(owner, name, Float32Edges(network, lowered.dtype))
    try:
        yield
    finally:
        setattr(owner, name, exact)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floats of a tensor, a tuple or a model output, in a dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):  # transformers' outputs are
        for name in value:
            value[name] = _cast(value[name], dtype)
        return value
    return tuple(_cast(each, dtype) for each in value) if isinstance(value, tuple) else value


def table(rows: Mapping[str, Row], reference: Mapping[str, Row]) -> str:
    """Markdown: a row a component, then the whole run; a column a precision."""
    heads = [*rows, *(f"diffusers {name}" for name in reference)]
    lines = ["| PSNR, dB | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in (*COMPONENTS, WHOLE):
        cells = [f"{column[name]:.1f}" for column in (*rows.values(), *reference.values())]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="PSNR of the demo model by precision and component.")
    parser.add_argument("--bundles", type=Path, help="Where bundles are or will be; default: a temporary folder.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = ours(export_all(arguments.bundles or Path(folder)))
    reference = theirs()
    if arguments.json:
        print(json.dumps({"telecine": rows, "diffusers": reference}, indent=1))
    else:
        print(table(rows, reference))


if __name__ == "__main__":
    main()
