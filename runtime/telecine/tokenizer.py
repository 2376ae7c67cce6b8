"""Prompts to token ids, from the `tokenizer.json` that export writes: the `tokenizers` package alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from telecine.errors import BundleError, RequestError

if TYPE_CHECKING:
    import tokenizers

# What `tokenizers` stores under "padding"; export sets it, and the runtime guesses none of it.
_PADDING_KEYS = ("pad_id", "pad_token", "direction")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedText:
    """(B, L) token ids of B prompts, and what did not fit.

    Attributes:
        input_ids: (B, L) int64, padded to exactly L.
        attention_mask: (B, L) int64, 1 for a token of the prompt and its end, 0 for padding.
        truncated: per prompt the text that was cut off, as the tokenizer decodes it, or None.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    truncated: tuple[str | None, ...]


class Tokenizer:
    """Token ids as transformers' tokenizer gives them with `padding="max_length", truncation=True`.

    It holds no state between calls, so clones of a pipeline may share it across threads.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad_id: int, pad_token: str, direction: str) -> None:
        self._backend = backend
        self._pad_id = pad_id
        self._pad_token = pad_token
        self._direction = direction

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Read a bundle's `tokenizer.json`.

        Raises:
            BundleError: the file is missing, damaged, or does not say how to pad.
        """
        # Imported here, so that importing telecine loads no native library but NumPy's.
        from tokenizers import Tokenizer as Backend

        fix = "Export the bundle again: telecine export SOURCE BUNDLE."
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{path} cannot be read ({error})", expected="the tokenizer that export writes", fix=fix
            ) from error
        try:
            backend = Backend.from_str(text)
        except Exception as error:  # `tokenizers` raises the bare class for every fault in a file
            raise BundleError(f"{path} is damaged ({error})", expected="a tokenizer.json", fix=fix) from error
        padding = backend.padding
        if padding is None or any(key not in padding for key in _PADDING_KEYS):
            raise BundleError(
                f'{path} has "padding": {padding}', expected="the padding that export adds to it", fix=fix
            )
        # Both are done per call: on the shared backend they would be a race between threads.
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, **{key: padding[key] for key in _PADDING_KEYS})

    def encode(self, prompts: Sequence[str], *, max_sequence_length: int) -> TokenizedText:
        """Turn B prompts into (B, max_sequence_length) ids and mask.

        What is too long is cut at the end; the end-of-text token stays.

        Raises:
            RequestError: `max_sequence_length` leaves no room, or a prompt is not text.
        """
        special = self._backend.num_special_tokens_to_add(False)
        if max_sequence_length < max(special, 1):
            raise RequestError(
                f"max_sequence_length is {max_sequence_length}",
                expected=f"at least {max(special, 1)}",
                fix="Use the pipeline's default by leaving it out.",
            )
        _check_prompts(prompts)
        shape = (len(prompts), max_sequence_length)
        input_ids = np.empty(shape, np.int64)
        attention_mask = np.empty(shape, np.int64)
        truncated: list[str | None] = []
        for row, prompt in enumerate(prompts):
            encoding = self._backend.encode(prompt, add_special_tokens=False)
            removed = encoding.ids[max_sequence_length - special :]
            truncated.append(self._backend.decode(removed, skip_special_tokens=False) if removed else None)
            encoding.truncate(max_sequence_length - special)
            encoding = self._backend.post_process(encoding)  # appends the end-of-text token
            encoding.pad(
                max_sequence_length,
                direction=self._direction,
                pad_id=self._pad_id,
                pad_token=self._pad_token,
            )
            input_ids[row] = encoding.ids
            attention_mask[row] = encoding.attention_mask
        return TokenizedText(input_ids=input_ids, attention_mask=attention_mask, truncated=tuple(truncated))


def _check_prompts(prompts: Sequence[str]) -> None:
    """Refuse what `tokenizers` would refuse with an error about Rust unions."""
    if isinstance(prompts, str):
        raise RequestError("prompts is one string", expected="a list of strings", fix="Put the prompt in a list.")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise RequestError(f"a prompt is {type(prompt).__name__}", expected="a string", fix="Pass prompts as text.")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            # Lone surrogates: what Python makes of command-line bytes that are not UTF-8.
            raise RequestError(
                f"a prompt has {prompt[error.start : error.end]!a} at character {error.start}",
                expected="text that UTF-8 can hold",
                fix="Save or type the prompt as UTF-8.",
            ) from error
