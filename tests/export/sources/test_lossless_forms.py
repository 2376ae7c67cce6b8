"""One model in many forms: each that loses nothing exports to the same bytes of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
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


@pytest.mark.parametrize("form", [sharded, unquantised_gguf, parts_of_a_file, without_prefixes, fused_at_zero])
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
