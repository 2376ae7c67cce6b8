"""The saved tokenizer.json against the tokenizer that diffusers loads, for every form a checkpoint ships."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from telecine.errors import SourceError
from telecine.tokenizer import Tokenizer
from telecine_export.tokenizer import save_tokenizer_json
from telecine_export.verify.ltx_video import PROMPTS


def _make_tiny_checkpoint() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "make_tiny_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_tiny_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_tiny_checkpoint().make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), layers=1)


def _write_legacy_configuration(folder: Path, vocabulary: int) -> None:
    """Write what transformers 4 wrote beside spiece.model, as the published LTX-Video repository has it."""
    sentinels = [f"<extra_id_{i}>" for i in range(100)]
    last = vocabulary + 99
    decoder: dict[int, tuple[str, bool]] = {0: ("<pad>", False), 1: ("</s>", False), 2: ("<unk>", False)}
    decoder |= {last - i: (sentinel, True) for i, sentinel in enumerate(sentinels)}
    config = {
        "add_prefix_space": True,
        "added_tokens_decoder": {
            str(index): {
                "content": content,
                "lstrip": strip,
                "normalized": False,
                "rstrip": strip,
                "single_word": False,
                "special": True,
            }
            for index, (content, strip) in sorted(decoder.items())
        },
        "additional_special_tokens": sentinels,
        "clean_up_tokenization_spaces": True,
        "eos_token": "</s>",
        "extra_ids": 100,
        "legacy": True,
        "model_max_length": 128,
        "pad_token": "<pad>",
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {"additional_special_tokens": sentinels} | {
        name: {"content": content, **token}
        for name, content in (("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>"))
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps({s: last - i for i, s in enumerate(sentinels)}))


def _reshape_tokenizer(folder: Path, form: str) -> None:
    """Leave in `folder` only the files of a form."""
    keep = {
        "both": {"tokenizer.json", "spiece.model", "tokenizer_config.json"},
        "tokenizer.json": {"tokenizer.json", "tokenizer_config.json"},
        "tokenizer.json alone": {"tokenizer.json"},
        "spiece.model": {"spiece.model", "tokenizer_config.json"},
        "spiece.model alone": {"spiece.model"},
        "legacy": {"spiece.model"},
    }[form]
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink()
    if form == "legacy":
        _write_legacy_configuration(folder, vocabulary=300)


FORMS = ["both", "tokenizer.json", "tokenizer.json alone", "spiece.model", "spiece.model alone", "legacy"]


@pytest.fixture(scope="module", params=FORMS)
def shipped(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer folder holds one form's files."""
    source = tmp_path_factory.mktemp("shipped") / "source"
    shutil.copytree(checkpoint, source)
    _reshape_tokenizer(source / "tokenizer", request.param)
    return source


@pytest.fixture(scope="module")
def oracle(shipped: Path) -> Any:
    from diffusers import LTXPipeline

    return LTXPipeline.from_pretrained(shipped).tokenizer


@pytest.fixture(scope="module")
def saved(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("bundle") / "tokenizer" / "tokenizer.json"
    save_tokenizer_json(shipped / "tokenizer", destination)
    return destination


@pytest.mark.parametrize("length", [1, 2, 16, 128, 256])
def test_ids_and_masks_are_those_of_the_pipeline(saved: Path, oracle: Any, length: int) -> None:
    ours = Tokenizer.load(saved).encode(PROMPTS, max_sequence_length=length)
    theirs = oracle(
        list(PROMPTS),
        padding="max_length",
        max_length=length,
        truncation=True,
        add_special_tokens=True,
        return_tensors="np",
    )
    np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
    np.testing.assert_array_equal(ours.attention_mask, theirs.attention_mask)


def test_the_file_names_padding_and_leaves_length_to_the_request(saved: Path) -> None:
    content = json.loads(saved.read_text(encoding="utf-8"))
    assert content["padding"]["pad_id"] == 0
    assert content["padding"]["pad_token"] == "<pad>"
    assert content["padding"]["strategy"] == "BatchLongest"
    assert content["truncation"] is None


def test_plain_text_is_what_sentencepiece_itself_gives(saved: Path, checkpoint: Path) -> None:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer" / "spiece.model"))
    plain = [prompt for prompt in PROMPTS if "<" not in prompt]
    ids = Tokenizer.load(saved).encode(plain, max_sequence_length=1024).input_ids
    for row, prompt in zip(ids, plain, strict=True):
        expected = [*model.encode(prompt), 1]
        assert row[: len(expected)].tolist() == expected
        assert not row[len(expected) :].any()


def _copy_file(checkpoint: Path, folder: Path, name: str) -> Path:
    shutil.copy(checkpoint / "tokenizer" / name, folder / name)
    return folder / name


def test_refuses_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"neither tokenizer.json nor spiece.model"):
        save_tokenizer_json(tmp_path / "absent", tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("content", [b"", b"not a model" * 20, None], ids=["empty", "garbage", "cut"])
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_refuses_a_damaged_file(checkpoint: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    path = _copy_file(checkpoint, tmp_path, name)
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(SourceError, match=name):
        save_tokenizer_json(tmp_path, tmp_path / "out.json")


def test_refuses_another_kind_of_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    (tmp_path / "tokenizer.json").write_text(Backend(BPE()).to_str())
    with pytest.raises(SourceError, match="BPE"):
        save_tokenizer_json(tmp_path, tmp_path / "out.json")


@pytest.mark.parametrize(
    "config",
    ["{", '{"truncation_side": "left"}', '{"split_special_tokens": true}', '{"pad_token": null}'],
)
def test_refuses_a_configuration_that_cannot_be_carried_over(checkpoint: Path, tmp_path: Path, config: str) -> None:
    _copy_file(checkpoint, tmp_path, "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(SourceError):
        save_tokenizer_json(tmp_path, tmp_path / "out.json")
