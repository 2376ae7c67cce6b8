"""LTX-2's checks of what becomes of a prompt: tokens, features, and what the video and the sound attend to."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from telecine.bundle import Bundle
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.text import tokenize
from telecine.tokenizer import Tokenizer
from telecine_export.families.ltx2 import gemma, networks
from telecine_export.source import Source
from telecine_export.tokenizer import GEMMA, load_tokenizer
from telecine_export.verify import ltx_video
from telecine_export.verify.checks import Array, Case, compare_graph
from telecine_export.verify.comparison import Pair
from telecine_export.verify.modules import load_module

# What Gemma's tokenizer treats in its own way, beside what T5's does.
PROMPTS = (
    *ltx_video.PROMPTS,
    "ends early <eos> and <bos> goes on",
    "<start_of_turn>user\nhello<end_of_turn>\n\n\n<start_of_turn>model",
    "many     spaces,\t\ttabs and\n\n\n\nlines",
    "<table><unused0>[multimodal]</table> \x00",
)
TEXT_LENGTHS = (128, 9)
# Tokens of each prompt, as shares of a length in units of the connectors' registers (16 without them): padded in
# front, whole, a single token. Traced at 2 x 12 and 2 x 7.
TEXTS = ((1, (0.6,)), (2, (1.0, 0.0)), (3, (0.3, 0.8, 1.0)))
WITHOUT_REGISTERS = 16
SEED = 0


def tokenizer(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, L) ids and masks of `PROMPTS`, one pair a prompt and length."""
    ours = Tokenizer.load(bundle.path(bundle.manifest.tokenizer))
    theirs = load_tokenizer(source.tokenizer, GEMMA)
    pairs = []
    for length in TEXT_LENGTHS:
        got = tokenize(ours, PROMPTS, length)
        expected = theirs(
            [prompt.strip() for prompt in PROMPTS], padding="max_length", max_length=length, truncation=True,
            add_special_tokens=True, return_tensors="np",
        )  # fmt: skip
        pairs += [
            Pair(
                case=f"{prompt[:40]!r} at {length} tokens",
                shapes={"ids and mask": (2, length)},
                got=np.stack([got.input_ids[row], got.attention_mask[row]]),
                expected=np.stack([expected["input_ids"][row], expected["attention_mask"][row]]),
            )
            for row, prompt in enumerate(PROMPTS)
        ]
    return pairs


def _texts(source: Source) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """A name and the (B, L) mask of prompts that are padded in front, for each of `TEXTS`."""
    unit = Host.parse(networks.host(source)).connectors.registers or WITHOUT_REGISTERS
    masks = []
    for units, shares in TEXTS:
        length = units * unit
        tokens = [max(1, round(share * length)) for share in shares]
        mask = (np.arange(length) >= length - np.array(tokens)[:, None]).astype(np.int64)
        masks.append((f"{' and '.join(map(str, tokens))} of {length} tokens", mask))
    return masks


def text_encoder(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, L, D) features of random ids: what diffusers' connectors project from all hidden states."""
    vocabulary = gemma.text_config(source).vocab_size
    random = np.random.default_rng(SEED)
    cases = [
        Case(name=name, feeds={"input_ids": random.integers(0, vocabulary, mask.shape), "attention_mask": mask})
        for name, mask in _texts(source)
    ]

    def load() -> nn.Module:
        parts = {name: load_module(source, name) for name in ("text_encoder", "connectors")}
        return nn.ModuleDict(parts)

    return compare_graph(bundle, "text_encoder", cases, load=load, reference=_features)


def _features(modules: Any, case: Case) -> Tensor:
    ids, mask = (torch.from_numpy(case.feeds[name]) for name in ("input_ids", "attention_mask"))
    states = modules["text_encoder"](input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    features, _ = _connected(modules["connectors"], torch.stack(states, dim=-1).flatten(2, 3), mask)
    return features


def _connected(module: Any, states: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What diffusers' connectors project from hidden states, side by side, and what they make of that."""
    features: list[Tensor] = []
    hooks = [
        part.register_forward_hook(lambda *call: features.append(call[2]))
        for name, part in module.named_children()
        if name.endswith("text_proj_in")
    ]
    video, audio, _ = module(states, mask, padding_side="left")
    for hook in hooks:
        hook.remove()
    return torch.cat(features, dim=-1), (video, audio)


def connectors(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, L, D') and (B, L, D'') outputs of features of random hidden states, packed by the runtime."""
    config = gemma.connectors_config(source)
    channels = config["caption_channels"] * config["text_proj_in_factor"]
    host = Host.parse(networks.host(source)).connectors
    random = np.random.default_rng(SEED)
    module = load_module(source, "connectors")
    cases, references = [], {}
    for name, mask in _texts(source):
        states = torch.from_numpy(normal(random, *mask.shape, channels))
        with torch.inference_mode():
            features, references[name] = _connected(module, states, torch.from_numpy(mask))
        feeds = {"prompt_embeds": features.numpy(), **host.inputs(mask.astype(np.float32))}
        cases.append(Case(name=name, feeds=feeds))
    return compare_graph(
        bundle, "connectors", cases, load=lambda: module, reference=lambda _, case: references[case.name]
    )


def normal(random: np.random.Generator, *shape: int) -> Array:
    """Random values around 0, as hidden states and latents are."""
    return random.standard_normal(shape, dtype=np.float32)
