"""A checkpoint's tokenizer, in whatever form it ships, to one self-contained `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from transformers import T5Tokenizer

from telecine.errors import SourceError

_EXPECTED = "a folder with a T5 tokenizer: tokenizer.json or spiece.model"
_FIX = "Download the checkpoint again; its tokenizer/ folder is incomplete or damaged."


def save_tokenizer_json(tokenizer_folder: Path, destination: Path) -> None:
    """Write to the file `destination` the tokenizer that diffusers would load from `tokenizer_folder`.

    The file holds all that the runtime needs: vocabulary, normalisation, sentinels, end-of-text token and
    padding. Reads tokenizer.json, or spiece.model with or without the configuration files beside it.

    Raises:
        SourceError: neither file is there, one is damaged, or the tokenizer works in a way that
            tokenizer.json cannot express.
    """
    tokenizer = load_tokenizer(Path(tokenizer_folder))
    _check_portable(tokenizer, Path(tokenizer_folder))
    backend = tokenizer.backend_tokenizer
    # Length belongs to the request: the runtime truncates and pads to its max_sequence_length.
    backend.no_truncation()
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
    )
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_text(backend.to_str(), encoding="utf-8")


def load_tokenizer(folder: Path) -> Any:
    """Load the T5 tokenizer of `folder` as diffusers does, through transformers.

    Raises:
        SourceError: there is no tokenizer, or transformers cannot read it.
    """
    _check_files(folder)
    try:
        # diffusers calls this very method on the class that model_index.json names; T5TokenizerFast is
        # another name of the class since transformers 5.
        return T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f"transformers cannot load the tokenizer in {folder} ({error})", expected=_EXPECTED, fix=_FIX
        ) from error


def _check_files(folder: Path) -> None:
    """Refuse what transformers accepts in silence.

    From an empty folder it makes a tokenizer of the sentinels alone, and a broken spiece.model it takes
    for another format.
    """
    tokenizer_json, spiece = folder / "tokenizer.json", folder / "spiece.model"
    if not tokenizer_json.is_file() and not spiece.is_file():
        raise SourceError(f"{folder} has neither tokenizer.json nor spiece.model", expected=_EXPECTED, fix=_FIX)
    # transformers prefers tokenizer.json where both are there.
    if tokenizer_json.is_file():
        _check_tokenizer_json(tokenizer_json)
    else:
        _check_sentencepiece(spiece)


def _check_tokenizer_json(path: Path) -> None:
    try:
        model = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")).model
    except Exception as error:  # `tokenizers` raises the bare class for every fault in a file
        raise SourceError(f"{path} is damaged ({error})", expected=_EXPECTED, fix=_FIX) from error
    kind = type(model).__name__
    if kind != "Unigram":
        raise SourceError(f"{path} holds a {kind} model", expected="T5's, a Unigram", fix=_FIX)


def _check_sentencepiece(path: Path) -> None:
    try:
        content = path.read_bytes()
        # Of no bytes, sentencepiece makes a processor without a model.
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content).vocab_size() if content else 0
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{path} is damaged ({error})", expected=_EXPECTED, fix=_FIX) from error
    if pieces == 0:
        raise SourceError(f"{path} has no vocabulary", expected=_EXPECTED, fix=_FIX)


def _check_portable(tokenizer: Any, folder: Path) -> None:
    """Refuse settings that live in tokenizer_config.json and have no place in tokenizer.json."""
    settings = (
        ("truncation_side", tokenizer.truncation_side, "right"),
        ("split_special_tokens", tokenizer.split_special_tokens, False),
        ("pad_token", tokenizer.pad_token, tokenizer.pad_token or "<pad>"),
    )
    for name, got, expected in settings:
        if got != expected:
            raise SourceError(
                f"{folder / 'tokenizer_config.json'} sets {name} to {got}",
                expected=f"{expected}, as in T5",
                fix="Remove the setting in a copy of the checkpoint.",
            )
