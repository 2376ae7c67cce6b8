"""The runtime's tokenizer against transformers' T5Tokenizer over the same small vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Tokenizer

from telecine.errors import BundleError, RequestError
from telecine.tokenizer import Tokenizer

WORDS = [
    "a",
    "red",
    "ball",
    "rolls",
    "to",
    "the",
    "left",
    "blue",
    "cube",
    "slowly",
    "turns",
    "right",
    ",",
    ".",
    "!",
    "over",
    "snow",
]


def _vocabulary() -> list[tuple[str, float]]:
    characters = sorted(set("".join(WORDS)) | {"▁", "x", "'"})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -3.0 - 0.01 * i) for i, word in enumerate(WORDS)]
    return pieces + [(character, -8.0 - 0.01 * i) for i, character in enumerate(characters)]


@pytest.fixture(scope="module")
def oracle() -> Any:
    vocabulary = _vocabulary() + [(f"<extra_id_{i}>", 0.0) for i in range(99, -1, -1)]
    return T5Tokenizer(vocab=vocabulary)


@pytest.fixture(scope="module")
def path(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = type(oracle.backend_tokenizer).from_str(oracle.backend_tokenizer.to_str())
    backend.enable_padding(pad_id=0, pad_token="<pad>")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def _expect(oracle: Any, prompts: list[str], length: int) -> Any:
    return oracle(
        prompts,
        padding="max_length",
        max_length=length,
        truncation=True,
        add_special_tokens=True,
        return_tensors="np",
    )


# Pieces of the vocabulary, sentinels, whitespace of every kind, and anything else that UTF-8 holds.
TEXT = st.lists(
    st.one_of(
        st.sampled_from([*WORDS, "</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_42>", " ", "\t", "\n", "▁"]),
        st.text(st.characters(codec="utf-8"), max_size=6),
    ),
    max_size=40,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(prompts=st.lists(TEXT, min_size=1, max_size=3), length=st.integers(1, 48))
def test_ids_and_mask_are_those_of_transformers(
    tokenizer: Tokenizer, oracle: Any, prompts: list[str], length: int
) -> None:
    ours = tokenizer.encode(prompts, max_sequence_length=length)
    theirs = _expect(oracle, prompts, length)
    np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
    np.testing.assert_array_equal(ours.attention_mask, theirs.attention_mask)
    assert ours.input_ids.dtype == ours.attention_mask.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(prompt=TEXT, length=st.integers(1, 24))
def test_truncated_text_is_what_diffusers_warns_of(tokenizer: Tokenizer, oracle: Any, prompt: str, length: int) -> None:
    # The lines of LTXPipeline._get_t5_prompt_embeds, for one prompt.
    text_input_ids = _expect(oracle, [prompt], length).input_ids
    untruncated_ids = oracle([prompt], padding="longest", return_tensors="np").input_ids
    warns = untruncated_ids.shape[-1] >= length and not np.array_equal(text_input_ids, untruncated_ids)
    removed = oracle.batch_decode(untruncated_ids[:, length - 1 : -1])[0] if warns else None
    assert tokenizer.encode([prompt], max_sequence_length=length).truncated == (removed,)


def test_exactly_full_is_not_truncated(tokenizer: Tokenizer) -> None:
    text = tokenizer.encode(["a red ball", "a red ball rolls"], max_sequence_length=4)
    assert text.attention_mask.all()
    assert text.input_ids[:, -1].tolist() == [1, 1]
    assert text.truncated == (None, "rolls")


def test_no_prompts_give_no_rows(tokenizer: Tokenizer) -> None:
    text = tokenizer.encode([], max_sequence_length=8)
    assert text.input_ids.shape == text.attention_mask.shape == (0, 8)
    assert text.truncated == ()


def test_padding_comes_from_the_file(path: Path, tmp_path: Path, oracle: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["padding"] |= {"pad_id": 2, "pad_token": "<unk>", "direction": "Left"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    text = Tokenizer.load(tmp_path / "tokenizer.json").encode(["a ball"], max_sequence_length=5)
    assert text.input_ids[0, :2].tolist() == [2, 2]
    assert text.attention_mask.tolist() == [[0, 0, 1, 1, 1]]


def test_padding_and_truncation_in_the_file_set_no_length(path: Path, tmp_path: Path, oracle: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["padding"] |= {"strategy": {"Fixed": 7}, "pad_to_multiple_of": 5}
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    prompts = ["a red ball rolls to the left", "a"]
    text = Tokenizer.load(tmp_path / "tokenizer.json").encode(prompts, max_sequence_length=6)
    np.testing.assert_array_equal(text.input_ids, _expect(oracle, prompts, 6).input_ids)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "{", '{"model": {}}', "\udcff"], ids=lambda content: ascii(content)
)
def test_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_cut_file_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(content[: len(content) // 2], encoding="utf-8")
    with pytest.raises(BundleError, match="damaged"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_file_without_padding_is_refused(oracle: Any, tmp_path: Path) -> None:
    content = json.loads(oracle.backend_tokenizer.to_str()) | {"padding": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match="padding"):
        Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("length", [0, -1])
def test_length_below_one_is_refused(tokenizer: Tokenizer, length: int) -> None:
    with pytest.raises(RequestError, match=f"max_sequence_length is {length}"):
        tokenizer.encode(["a"], max_sequence_length=length)


@pytest.mark.parametrize("prompts", ["a red ball", [None], [3], ["a \udcff ball"]])
def test_prompts_that_are_not_text_are_refused(tokenizer: Tokenizer, prompts: Any) -> None:
    with pytest.raises(RequestError):
        tokenizer.encode(prompts, max_sequence_length=8)


def test_import_is_cheap() -> None:
    code = "import sys, telecine.tokenizer; sys.exit('tokenizers' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
