"""torch's side of verify: diffusers' own loading of a folder, and modules filled from any other source."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXPipeline

from telecine.errors import SourceError
from telecine_export.source import open_source
from telecine_export.verify.modules import PIPELINE_MODULES, load_module, load_pipeline


def test_a_composed_source_s_pipeline_is_the_folder_s(tiny_source: Path, tmp_path: Path) -> None:
    base: Any = load_pipeline(open_source(str(tiny_source)))
    (file,) = (tiny_source / "text_encoder").glob("*.safetensors")
    parts = {name: str(tiny_source / name) for name in ("transformer", "vae")}
    (vae,) = (tiny_source / "vae").glob("*.safetensors")
    composed: Any = load_pipeline(open_source(str(tiny_source), text_encoder=str(file), **{**parts, "vae": str(vae)}))
    assert type(composed) is type(base) is LTXPipeline
    assert dict(composed.scheduler.config) == dict(base.scheduler.config)
    assert composed.tokenizer("a red ball").input_ids == base.tokenizer("a red ball").input_ids
    for name in PIPELINE_MODULES:
        ours, theirs = getattr(composed, name).state_dict(), getattr(base, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert all(values.dtype == torch.float32 for values in ours.values())


def test_a_folder_that_diffusers_cannot_load(tiny_source: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_source, tmp_path / "copy")
    (file,) = (tmp_path / "copy" / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SourceError, match="torch cannot load"):
        load_module(open_source(str(tmp_path / "copy")), "vae")
