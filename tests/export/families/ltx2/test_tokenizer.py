"""Gemma's saved tokenizer.json against the tokenizer that LTX2Pipeline loads, for every form a checkpoint ships."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from diffusers import LTX2Pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tiny_checkpoint import corpus
from tiny_gemma import TEXT_LENGTH, WHOLE, tiny_gemma_tokenizer
from transformers import GemmaTokenizer

from telecine.errors import SourceError
from telecine.families.ltx2.text import tokenize
from telecine.tokenizer import Tokenizer
from telecine_export.source import open_source
from telecine_export.tokenizer import GEMMA, load_tokenizer, save_tokenizer_json

# Where tokenizers disagree: spaces, pieces that stay whole, special tokens in a text, bytes, normalisation, length.
PROMPTS = (
    "A red ball rolls to the left.",
    "",
    " \n ",
    "  two   spaces,    tabs\tand\n\n\nnewlines \r\n ",
    "ends early <eos> and <bos> goes on <pad><unk>",
    "<start_of_turn>user\nhello<end_of_turn>",
    "<table><unused0> [multimodal]</table>",
    "a fine ﬁne ①②③ ＡＢＣ ½ e\u0301 é",
    "一只红色的球滚到左边 cat",
    "emoji 🎬🎥 and 👩‍👩‍👧",
    "zero\u200bwidth no\u00a0break ideographic\u3000space",
    "▁ the metaspace ▁▁itself",
    "\x00 and \ufffd",
    "the quick brown ball " * 80,
)
FORMS = ("tokenizer.json", "tokenizer.json alone", "transformers 4", "tokenizer.model", "no pad token", "right padding")


def write_sentencepiece(folder: Path) -> None:
    """What the first Gemma shipped: BPE with byte fallback, which leaves spaces as they are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        unk_piece="<unk>", user_defined_symbols=["<mask>", *(piece for piece in WHOLE if piece.strip())],
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def write_legacy_configuration(folder: Path) -> None:
    """tokenizer_config.json as transformers 4 wrote it for Gemma-3."""
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(each["id"]): {name: each[name] for name in names} for each in added},
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "image_token": "<image_soft_token>",
        "extra_special_tokens": {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"},
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": "<pad>",
        "processor_class": "Gemma3Processor",
        "sp_model_kwargs": None,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    tiny_gemma_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=FORMS)
def shipped(request: pytest.FixtureRequest, learned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder in one form."""
    folder = tmp_path_factory.mktemp("source") / "tokenizer"
    shutil.copytree(learned, folder)
    config = folder / "tokenizer_config.json"
    if request.param == "tokenizer.json alone":
        config.unlink()
    elif request.param == "transformers 4":
        write_legacy_configuration(folder)
    elif request.param == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
        write_sentencepiece(folder)
    elif request.param in ("no pad token", "right padding"):
        changes = {"no pad token": {"pad_token": None}, "right padding": {"padding_side": "right"}}
        config.write_text(json.dumps(json.loads(config.read_text()) | changes[request.param]))
    return folder


@pytest.fixture(scope="module")
def saved(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("bundle") / "tokenizer" / "tokenizer.json"
    save_tokenizer_json(shipped, destination, GEMMA)
    return destination


class Recorder:
    """Stands in for Gemma: what the pipeline feeds it."""

    dtype = None

    def __call__(self, input_ids: Any, attention_mask: Any, output_hidden_states: bool) -> Any:
        self.fed = np.stack([input_ids.numpy(), attention_mask.numpy()])
        raise StopIteration


def fed_by_the_pipeline(tokenizer: Any, prompts: list[str], length: int) -> np.ndarray:
    """(2, B, L) ids and mask that LTX2Pipeline gives its text encoder."""
    recorder: Any = Recorder()
    pipe: Any = LTX2Pipeline._get_gemma_prompt_embeds
    owner = type("Pipe", (), {"tokenizer": tokenizer, "text_encoder": recorder, "_execution_device": "cpu"})()
    with pytest.raises(StopIteration):
        pipe(owner, prompts, max_sequence_length=length)
    fed: np.ndarray = recorder.fed
    return fed


@pytest.mark.parametrize("length", [1, 2, 16, 128])
def test_ids_and_masks_are_those_of_the_pipeline(saved: Path, shipped: Path, length: int) -> None:
    oracle = GemmaTokenizer.from_pretrained(shipped)
    ours = tokenize(Tokenizer.load(saved), PROMPTS, length)
    theirs = fed_by_the_pipeline(oracle, list(PROMPTS), length)
    np.testing.assert_array_equal(ours.input_ids, theirs[0])
    np.testing.assert_array_equal(ours.attention_mask, theirs[1])
    if length == 128:
        assert ours.attention_mask[0].tolist() == sorted(ours.attention_mask[0])  # padded in front
        assert ours.attention_mask[-1].all()
        assert ours.truncated[-1]


# Any text, and texts of what the vocabulary treats in its own way.
TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from([*WHOLE, "<bos>", "<eos>", "<pad>", "<start_of_turn>", "ball", " ", "é", "🎬", "  "]), max_size=20
).map("".join)


@settings(max_examples=150, deadline=None)
@given(prompts=st.lists(TEXTS.filter(lambda text: text.isprintable() or text.isascii()), min_size=1, max_size=3),
       length=st.integers(1, 80))  # fmt: skip
def test_any_text_has_transformers_ids(pair: tuple[Tokenizer, Any], prompts: list[str], length: int) -> None:
    ours, oracle = pair
    got = tokenize(ours, prompts, length)
    expected = fed_by_the_pipeline(oracle, prompts, length)
    np.testing.assert_array_equal(got.input_ids, expected[0])
    np.testing.assert_array_equal(got.attention_mask, expected[1])


@pytest.fixture(scope="module")
def pair(learned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    destination = tmp_path_factory.mktemp("pair") / "tokenizer.json"
    save_tokenizer_json(learned, destination, GEMMA)
    return Tokenizer.load(destination), GemmaTokenizer.from_pretrained(learned)


def test_the_tiny_tokenizer_is_gemmas_kind(learned: Path) -> None:
    tokenizer = load_tokenizer(learned, GEMMA)
    assert tokenizer.model_max_length == TEXT_LENGTH
    assert tokenizer("ball").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{"), ("tokenizer.model", "no model")])
def test_refuses_a_damaged_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=rf"{name} is damaged .*expected a folder with a Gemma tokenizer"):
        save_tokenizer_json(tmp_path, tmp_path / "out.json", GEMMA)


def test_refuses_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path, GEMMA)


def test_refuses_another_kind_of_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import Unigram

    (tmp_path / "tokenizer.json").write_text(Backend(Unigram([("a", 0.0)], 0)).to_str())
    with pytest.raises(SourceError, match="holds a Unigram model; expected Gemma's, a BPE"):
        load_tokenizer(tmp_path, GEMMA)


def test_a_text_encoder_brings_its_tokenizer_model(
    ltx2_sources: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, _ = ltx2_sources("2.3")
    gemma = shutil.copytree(source / "text_encoder", tmp_path / "gemma")
    assert open_source(str(source), text_encoder=str(gemma)).tokenizer == source / "tokenizer"
    write_sentencepiece(gemma)
    assert open_source(str(source), text_encoder=str(gemma)).tokenizer == gemma
