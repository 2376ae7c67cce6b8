"""One model in many forms: what loses nothing exports to the same bytes of weights, the rest to within its steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from safetensors.torch import load_file, save_file

from telecine.bundle import Bundle
from telecine_export.export import export_bundle
from telecine_export.source import open_source

Form = Callable[[Path, Path, Path], dict[str, Any]]


def sharded(tiny_source: Path, original_file: Path, folder: Path) -> dict[str, Any]:
    """As save_pretrained splits a large transformer."""
    transformer: Any = LTXVideoTransformer3DModel.from_pretrained(tiny_source / "transformer")
    transformer.save_pretrained(folder / "sharded", max_shard_size="300KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    return {"source": tiny_source, "transformer": folder / "sharded"}


def unquantised_gguf(tiny_source: Path, original_file: Path, folder: Path) -> dict[str, Any]:
    tensors = load_file(original_file)
    writer = gguf.GGUFWriter(folder / "model.gguf", "ltxv")
    prefix = "model.diffusion_model."
    for name, values in tensors.items():
        if name.startswith(prefix):
            writer.add_tensor(name.removeprefix(prefix), values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"source": tiny_source, "transformer": folder / "model.gguf"}


def parts_of_a_file(tiny_source: Path, original_file: Path, folder: Path) -> dict[str, Any]:
    (t5,) = (tiny_source / "text_encoder").glob("*.safetensors")
    return {"source": tiny_source, "transformer": original_file, "vae": original_file, "text_encoder": t5}


def without_prefixes(tiny_source: Path, original_file: Path, folder: Path) -> dict[str, Any]:
    """A transformer and a VAE by original names in files of their own."""
    arguments: dict[str, Any] = {"source": tiny_source}
    for part, prefix in (("transformer", "model.diffusion_model."), ("vae", "vae.")):
        tensors = {n.removeprefix(prefix): v for n, v in load_file(original_file).items() if n.startswith(prefix)}
        save_file(tensors, folder / f"{part}.safetensors")
        arguments[part] = folder / f"{part}.safetensors"
    return arguments


def fused_at_zero(tiny_source: Path, original_file: Path, folder: Path) -> dict[str, Any]:
    pair = {"lora_A": torch.ones(1, 16), "lora_B": torch.ones(64, 1)}
    save_file({f"transformer.proj_in.{part}.weight": values for part, values in pair.items()}, folder / "l.safetensors")
    return {"source": tiny_source, "loras": [f"{folder / 'l.safetensors'}=0"]}


def in_the_hub_s_cache(tiny_source: Path, original_file: Path, folder: Path) -> dict[str, Any]:
    """As huggingface_hub keeps a repository: links into blobs."""
    home = folder / "models--owner--tiny"
    snapshot = home / "snapshots" / ("0" * 40)
    for file in tiny_source.rglob("*"):
        if file.is_file():
            link, blob = snapshot / file.relative_to(tiny_source), home / "blobs" / str(hash(file))
            for place in (link, blob):
                place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blob)
            link.symlink_to(blob)
    return {"source": snapshot}


@pytest.mark.parametrize(
    "form", [sharded, unquantised_gguf, parts_of_a_file, without_prefixes, fused_at_zero, in_the_hub_s_cache]
)
def test_every_lossless_form_gives_the_same_weight_files(
    form: Form,
    original_file: Path,
    tiny_source: Path,
    tiny_bundle: Path,
    traced_before: None,
    weight_hashes: Any,
    tmp_path: Path,
) -> None:
    arguments = form(tiny_source, original_file, tmp_path)
    options = {name: value if name == "loras" else str(value) for name, value in arguments.items()}
    ours = export_bundle(open_source(**options), tmp_path / "bundle").manifest
    assert weight_hashes(ours) == weight_hashes(Bundle.open(tiny_bundle).manifest)


# Steps of a block's or row's largest weight, half of which is the error; float8 keeps 3 bits behind the first one,
# down to 2**-9. float16 scales add a 2048th.
STEPS = {"Q8_0": 0.5 / 127 + 2**-11, "8-bit": 0.5 / 127 + 1e-6, "float8": 2.0**-4 + 2.0**-9}


def quantised(form: str, tensors: dict[str, torch.Tensor], file: Path) -> Path:
    """A transformer's file, its linear layers in `form`; the rest as it was."""
    linear = {name for name, values in tensors.items() if values.ndim == 2 and name.endswith("weight")}
    linear = {name for name in linear if tensors[name].shape[1] % 32 == 0}
    if form == "Q8_0":
        writer = gguf.GGUFWriter(file, "ltxv")
        for name, values in tensors.items():
            kind = gguf.GGMLQuantizationType.Q8_0 if name in linear else gguf.GGMLQuantizationType.F32
            writer.add_tensor(name, gguf.quants.quantize(values.numpy(), kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file
    stored = dict(tensors)
    for name in linear:
        if form == "float8":
            stored[name] = tensors[name].to(torch.float8_e4m3fn)
        else:
            scales = tensors[name].abs().amax(dim=1)
            stored[name] = torch.round(tensors[name] / scales[:, None] * 127).to(torch.int8)
            stored[name.removesuffix("weight") + "SCB"] = scales
    save_file(stored, file)
    return file


@pytest.mark.parametrize("form", STEPS)
def test_quantised_forms_export_within_their_steps(
    form: str, tiny_source: Path, tiny_bundle: Path, traced_before: None, weight_hashes: Any, tmp_path: Path
) -> None:
    (plain,) = (tiny_source / "transformer").glob("*.safetensors")
    tensors = load_file(plain)
    file = quantised(form, tensors, tmp_path / ("model.gguf" if form == "Q8_0" else "model.safetensors"))
    bundle = tmp_path / "bundle"
    ours = export_bundle(open_source(str(tiny_source), transformer=str(file)), bundle).manifest
    expected = weight_hashes(Bundle.open(tiny_bundle).manifest)
    assert {name for name, value in weight_hashes(ours).items() if value != expected[name]} == {"transformer"}
    got, exact = (np.fromfile(root / "transformer" / "weights.bin", np.float32) for root in (bundle, tiny_bundle))
    assert got.shape == exact.shape
    largest = max(float(values.abs().max()) for values in tensors.values() if values.ndim == 2)
    assert 0 < np.abs(got - exact).max() <= STEPS[form] * largest
