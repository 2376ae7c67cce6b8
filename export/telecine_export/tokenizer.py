"""A checkpoint's tokenizer, in whatever form it ships, to one self-contained `tokenizer.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from transformers import GemmaTokenizer, T5Tokenizer

from telecine.errors import SourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerKind:
    """A text encoder's tokenizer: transformers' class, the model in its tokenizer.json, its sentencepiece file.

    `padding_side` is what pipelines set, whatever the files say; None leaves it. They pad with the end of the text
    where there is no `pad_token`, if `pads_with_eos`.
    """

    name: str
    loader: Any
    model: str
    sentencepiece: str
    padding_side: str | None = None
    pads_with_eos: bool = False

    @property
    def expected(self) -> str:
        return f"a folder with a {self.name} tokenizer: tokenizer.json or {self.sentencepiece}"


# diffusers calls `from_pretrained` of the class that model_index.json names. T5TokenizerFast and GemmaTokenizerFast
# are other names of these since transformers 5.
T5 = TokenizerKind(name="T5", loader=T5Tokenizer, model="Unigram", sentencepiece="spiece.model")
GEMMA = TokenizerKind(
    name="Gemma",
    loader=GemmaTokenizer,
    model="BPE",
    sentencepiece="tokenizer.model",
    padding_side="left",
    pads_with_eos=True,
)

_FIX = "Download the checkpoint again; its tokenizer/ folder is incomplete or damaged."


def save_tokenizer_json(tokenizer_folder: Path, destination: Path, kind: TokenizerKind = T5) -> None:
    """Write to the file `destination` the tokenizer that diffusers would load from `tokenizer_folder`.

    The file holds all that the runtime needs: vocabulary, normalisation, special tokens, what is put around a text,
    and padding. Reads tokenizer.json, or sentencepiece's file with or without the configuration files beside it.

    Raises:
        SourceError: neither file is there, one is damaged, or the tokenizer works in a way that
            tokenizer.json cannot express.
    """
    tokenizer = load_tokenizer(Path(tokenizer_folder), kind)
    _check_portable(tokenizer, Path(tokenizer_folder), kind)
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


def load_tokenizer(folder: Path, kind: TokenizerKind = T5) -> Any:
    """Load the tokenizer of `folder` as diffusers does, through transformers, set as its pipelines set it.

    Raises:
        SourceError: there is no tokenizer, or transformers cannot read it.
    """
    _check_files(folder, kind)
    try:
        tokenizer = kind.loader.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(
            f"transformers cannot load the tokenizer in {folder} ({error})", expected=kind.expected, fix=_FIX
        ) from error
    if kind.padding_side is not None:
        tokenizer.padding_side = kind.padding_side
    if kind.pads_with_eos and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_files(folder: Path, kind: TokenizerKind) -> None:
    """Refuse what transformers accepts in silence.

    From an empty folder it makes a tokenizer of the special tokens alone, and a broken sentencepiece file it takes
    for another format.
    """
    tokenizer_json, spiece = folder / "tokenizer.json", folder / kind.sentencepiece
    if not tokenizer_json.is_file() and not spiece.is_file():
        raise SourceError(
            f"{folder} has neither tokenizer.json nor {kind.sentencepiece}", expected=kind.expected, fix=_FIX
        )
    # transformers prefers tokenizer.json where both are there.
    if tokenizer_json.is_file():
        _check_tokenizer_json(tokenizer_json, kind)
    else:
        _check_sentencepiece(spiece, kind)


def _check_tokenizer_json(path: Path, kind: TokenizerKind) -> None:
    try:
        model = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")).model
    except Exception as error:  # `tokenizers` raises the bare class for every fault in a file
        raise SourceError(f"{path} is damaged ({error})", expected=kind.expected, fix=_FIX) from error
    if type(model).__name__ != kind.model:
        raise SourceError(
            f"{path} holds a {type(model).__name__} model", expected=f"{kind.name}'s, a {kind.model}", fix=_FIX
        )


def _check_sentencepiece(path: Path, kind: TokenizerKind) -> None:
    try:
        content = path.read_bytes()
        # Of no bytes, sentencepiece makes a processor without a model.
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content).vocab_size() if content else 0
    except (OSError, RuntimeError) as error:
        raise SourceError(f"{path} is damaged ({error})", expected=kind.expected, fix=_FIX) from error
    if pieces == 0:
        raise SourceError(f"{path} has no vocabulary", expected=kind.expected, fix=_FIX)


def _check_portable(tokenizer: Any, folder: Path, kind: TokenizerKind) -> None:
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
                expected=f"{expected}, as in {kind.name}",
                fix="Remove the setting in a copy of the checkpoint.",
            )
