"""A small Gemma 3 with random weights and its tokenizer, as LTX-2 has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from make_tiny_checkpoint import corpus, fill
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaTokenizer,
    SiglipVisionConfig,
)

# Gemma's own order: special tokens, pieces that are never split, the 256 bytes, then what was learned.
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
TURNS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
WHOLE = ("[multimodal]", "<unused0>", "\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>", "</table>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LEARNED = 300  # characters and merges
TEXT_LENGTH = 1024

# One layer looks back 12 tokens, the other at all, each with rotary frequencies of its own. Neither the heads' width
# nor the scores' scale follows from the hidden width.
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": TEXT_LENGTH,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    },
}
# The part that sees images, which LTX-2 never asks.
VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
    "vision_use_head": False,
}
GEMMA_RULES = (("norm.weight", 0.0, 0.2), ("layernorm.weight", 0.0, 0.2), (".bias", 0.0, 0.1))  # 1 is added to norms


def tiny_gemma_tokenizer(folder: Path) -> GemmaTokenizer:
    """Train the tokenizer and write it to `folder`: BPE that falls back to bytes, with "▁" for spaces."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _learn()
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    parts: Any = tokenizer  # mypy takes these properties for read-only
    parts.normalizer = normalizers.Replace(" ", "▁")
    parts.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    parts.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    parts.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer.add_special_tokens([*SPECIAL, *TURNS])
    tokenizer.add_tokens(list(WHOLE))
    tokenizer.save(str(folder / "tokenizer.json"))
    loaded: GemmaTokenizer = GemmaTokenizer.from_pretrained(folder, model_max_length=TEXT_LENGTH)
    loaded.save_pretrained(folder)
    return loaded


def _learn() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Give each piece its id, and list the merges of the corpus, which stay within words."""
    learner = Tokenizer(BPE())
    parts: Any = learner
    parts.normalizer = normalizers.Replace(" ", "▁")
    parts.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=LEARNED, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].get)
    pieces = dict.fromkeys((*SPECIAL, *TURNS, *WHOLE, *BYTES, *learned))
    return {piece: index for index, piece in enumerate(pieces)}, [tuple(pair) for pair in model["merges"]]


def tiny_gemma(tokenizer: GemmaTokenizer, *, seed: int, **config: Any) -> Gemma3ForConditionalGeneration:
    """Build a Gemma 3 of (B, L) ids, whose embeddings and 2 layers give 3 hidden states (B, L, 48).

    `config` overrides the text's.
    """
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (
        ("boi_token_index", "<start_of_image>"),
        ("eoi_token_index", "<end_of_image>"),
        ("image_token_index", "<image_soft_token>"),
    )}  # fmt: skip
    vocabulary = -(-len(tokenizer) // 64) * 64
    text_config: Any = Gemma3TextConfig  # fields are set by a decorator that mypy does not follow
    vision_config: Any = SiglipVisionConfig
    whole: Any = Gemma3Config
    model = Gemma3ForConditionalGeneration(
        whole(
            text_config=text_config(**{**TEXT, "vocab_size": vocabulary, **config}),
            vision_config=vision_config(**VISION),
            mm_tokens_per_image=4,
            **ids,
        )
    )
    fill(model, GEMMA_RULES, seed)
    return model.eval()
