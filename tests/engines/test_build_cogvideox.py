"""Real builds of CogVideoX by TensorRT for RTX, without a GPU: every role of its VAE, transformers of every style."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from telecine.axes import bind_axes
from telecine.bundle import Bundle
from telecine.engine import Sidecar
from telecine.manifest import FILE_NAME
from telecine_engines.build import BuildRequest, build_engines
from telecine_export.export import Progress, export_component
from telecine_export.family import family_of
from telecine_export.source import open_source

pytest.importorskip("tensorrt_rtx")

WORKLOAD = "32x32x9..96x96x17@b1..2"
# TensorRT's name of each precision's tensors.
COMPUTED_IN = {"fp16": "HALF", "bf16": "BF16", "fp8": "FP8"}
STYLES = ("5b", "5b-I2V", "1.5-5b", "1.5-5b-I2V")


def marked(*values: str, fast: bool) -> object:
    return pytest.param(*values, marks=() if fast else pytest.mark.slow)


def build(bundle: Path, engines: Path, *components: str) -> dict[tuple[str, str], Sidecar]:
    request = BuildRequest(
        bundle=Bundle.open(bundle), targets=("rtx-sm89",), workloads=(WORKLOAD,), components=components, engines=engines
    )
    return {(each.component, each.role): each for each in build_engines(request).sidecars.values()}


def assert_built(sidecar: Sidecar, bundle: Bundle, precision: str) -> None:
    (profile,) = sidecar.profiles
    inputs = bundle.graph(sidecar.component, sidecar.role).inputs
    sizes = {
        end: bind_axes(inputs, {name: getattr(span, end) for name, span in profile.items()}) for end in ("min", "max")
    }
    assert any(sizes["min"][symbol] < most for symbol, most in sizes["max"].items())
    assert sidecar.precisions[COMPUTED_IN[precision]] > 10, sidecar.precisions


@pytest.mark.parametrize(
    ("component", "precision"),
    [
        marked("transformer", "fp16", fast=True),
        marked("vae_decoder", "fp16", fast=True),
        marked("vae_encoder", "bf16", fast=True),
        marked("text_encoder", "fp8", fast=True),
        *(
            marked(component, precision, fast=False)
            for component, precision in (
                ("transformer", "bf16"), ("transformer", "fp8"), ("vae_decoder", "bf16"), ("vae_encoder", "fp16"),
                ("text_encoder", "fp16"), ("text_encoder", "bf16"),
            )
        ),
    ],
)  # fmt: skip
def test_every_role_of_2b_builds(
    component: str, precision: str, cogvideox_precisions: Callable[[str], Path], tmp_path: Path
) -> None:
    path = cogvideox_precisions(precision)
    sidecars, bundle = build(path, tmp_path, component), Bundle.open(path)
    assert {role for _, role in sidecars} == set(bundle.component(component).graphs)
    for sidecar in sidecars.values():
        assert_built(sidecar, bundle, precision)
        assert (sidecar.options["vae_tile"], sidecar.options["keyframes"]) == (None, None)


@pytest.mark.parametrize(
    ("style", "precision"),
    [marked(style, each, fast=False) for style in STYLES for each in COMPUTED_IN],
)
def test_transformers_of_the_other_styles_build(
    style: str, precision: str, cogvideox: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """By the policy; at fp8 with one scale for all activations, since a calibration is another test's."""
    source, bundle = cogvideox(style)
    opened = open_source(str(source))
    family = family_of(opened)
    spec = next(spec for spec in family.graphs(opened) if spec.component == "transformer")
    made = tmp_path / "bundle"
    shutil.copytree(bundle, made, ignore=shutil.ignore_patterns("transformer"))
    component = export_component(
        opened,
        made,
        [spec],
        precision=precision,
        opset=23,
        progress=Progress(),
        policy=family.policies["transformer"],
        amax={"main": defaultdict(lambda: 16.0)},
    )
    manifest = Bundle.open(bundle).manifest
    components = manifest.components | {"transformer": component}
    (made / FILE_NAME).write_text(dataclasses.replace(manifest, components=components).dump())
    (sidecar,) = build(made, tmp_path / "engines", "transformer").values()
    assert_built(sidecar, Bundle.open(made), precision)
