"""Gemma's tokens against transformers', and the packing for the connectors against diffusers' own connectors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors, per_layer_masked_mean_norm
from doubles.ltx2 import frequencies, make_host, make_transformer
from transformers import GemmaTokenizer

from telecine.errors import RequestError
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.prompts import texts
from telecine.families.ltx2.request import DEFAULTS, LTX2Request
from telecine.families.ltx2.text import Connectors, packing, tokenize
from telecine.prompt_cache import PromptCache
from telecine.tokenizer import Tokenizer

WORDS = ["a", "fox", "sings", "over", "the", "snow", "▁"]
PROMPTS = ["a fox", "  a fox sings over the snow \n", "", "snow" * 40, "ж<bos>a"]
REGISTERS = 4


@pytest.fixture(scope="module")
def gemma() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = sorted(set("".join(WORDS)))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = dict.fromkeys([*special, *bytes_, *letters])
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            pieces[word[:end]] = None
            merges.append((word[: end - 1], word[end - 1]))
    tokenizer = GemmaTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=list(dict.fromkeys(merges)),
        add_bos_token=True,
    )
    assert tokenizer.padding_side == "left"
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer(gemma: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    backend = type(gemma.backend_tokenizer).from_str(gemma.backend_tokenizer.to_str())
    backend.enable_padding(direction="left", pad_id=gemma.pad_token_id, pad_token=gemma.pad_token)
    path = tmp_path_factory.mktemp("gemma") / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer.load(path)


@pytest.mark.parametrize("length", [1, 2, 8, 48])
def test_tokens_are_those_of_transformers(tokenizer: Tokenizer, gemma: Any, length: int) -> None:
    ours = tokenize(tokenizer, PROMPTS, length)
    theirs = gemma(
        [prompt.strip() for prompt in PROMPTS], padding="max_length", max_length=length, truncation=True,
        add_special_tokens=True, return_tensors="np",
    )  # fmt: skip
    np.testing.assert_array_equal(ours.input_ids, theirs.input_ids)
    np.testing.assert_array_equal(ours.attention_mask, theirs.attention_mask)
    if length == 48:
        assert ours.attention_mask[0, 0] == 0  # padded in front
        assert ours.attention_mask[0, -1] == 1
        assert (ours.input_ids == gemma.bos_token_id).any(axis=1).all()


def make_connectors(registers: int | None) -> LTX2TextConnectors:
    torch.manual_seed(0)
    sizes = {
        f"{side}_connector_{name}": value
        for side in ("video", "audio")
        for name, value in (
            ("num_attention_heads", 2), ("attention_head_dim", 8), ("num_layers", 1),
            ("num_learnable_registers", registers),
        )
    }  # fmt: skip
    return LTX2TextConnectors(caption_channels=16, text_proj_in_factor=3, rope_type="split", **sizes).eval()


MASKS = np.array(
    [[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8, [0] * 7 + [1], [1, 0, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]], np.float32
)


@pytest.mark.parametrize("registers", [REGISTERS, 8, None])
def test_the_connectors_see_what_diffusers_shows_them(registers: int | None) -> None:
    torch.set_num_threads(1)
    connectors = make_connectors(registers)
    seen: dict[str, Any] = {}
    block = connectors.video_connector.transformer_blocks[0]
    block.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs, x=args[0]), with_kwargs=True)
    connectors.text_proj_in.register_forward_hook(lambda *call: seen.update(features=call[2]))
    hidden = torch.randn(len(MASKS), 8, 16 * 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        *_, attended = connectors(hidden, torch.from_numpy(MASKS))
    host = Connectors(
        registers=registers,
        base_length=4096,
        frequencies=frequencies(16, 1, double=True),
        audio_frequencies=frequencies(16, 1, double=True),
    )
    inputs: dict[str, Any] = host.inputs(MASKS)
    features = seen["features"].numpy()
    if registers:  # the graph's part
        rows = np.take_along_axis(features, inputs["token_index"][..., np.newaxis], axis=1)
        own = connectors.video_connector.learnable_registers.detach().numpy()[np.arange(8) % registers]
        features = np.where(inputs["token_mask"][..., np.newaxis] > 0, rows, own)
        assert "attention_mask" not in inputs
        assert (seen["attention_mask"] == 0).all()
    else:
        np.testing.assert_array_equal(inputs["attention_mask"] > 0, seen["attention_mask"][:, 0, 0] == 0)
    np.testing.assert_array_equal(features, seen["x"].numpy())
    assert (attended == 1).all()  # whatever the mask: the transformer is told none
    for name, theirs in zip(("rope_cos", "rope_sin"), seen["rotary_emb"], strict=True):
        mine = inputs[name].reshape(8, 2, 4).transpose(1, 0, 2)
        np.testing.assert_allclose(mine, theirs[0].numpy(), rtol=0, atol=1e-6)


def test_packing_keeps_the_order_of_tokens() -> None:
    index, front = packing(np.array([[0, 1, 0, 1, 1]]))
    assert index.tolist() == [[1, 3, 4, 0, 2]]
    assert front.tolist() == [[1, 1, 1, 0, 0]]


def test_registers_must_fill_the_text() -> None:
    host = Connectors(registers=128, base_length=4096, frequencies=np.ones(4), audio_frequencies=np.ones(4))
    with pytest.raises(RequestError, match="multiple of 128"):
        host.inputs(np.ones((1, 200), np.float32))


class TextEncoder:
    """Hidden states that tell ids apart, with diffusers' normalisation and projection, one prompt a call."""

    def __init__(self, connectors: LTX2TextConnectors) -> None:
        self.connectors = connectors
        self.table = torch.randn(300, 16 * 3, generator=torch.Generator().manual_seed(4))

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert {name: (len(each), each.dtype) for name, each in feeds.items()} == {
            "input_ids": (1, np.int64), "attention_mask": (1, np.int64),
        }  # fmt: skip
        mask = torch.from_numpy(feeds["attention_mask"])
        hidden = self.table[torch.from_numpy(feeds["input_ids"])].unflatten(2, (16, 3))
        normed = per_layer_masked_mean_norm(hidden, mask.sum(dim=-1), "cpu")
        with torch.no_grad():
            return {"prompt_embeds": self.connectors.text_proj_in(normed).numpy()}


class ConnectorsGraph:
    """What the graph does with its inputs; rows that are packed already stay as they are in diffusers' connectors."""

    def __init__(self, connectors: LTX2TextConnectors) -> None:
        self.connectors = connectors

    def run(self, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
        rows = np.take_along_axis(feeds["prompt_embeds"], feeds["token_index"][..., np.newaxis], axis=1)
        outputs = {}
        for name, side in (("encoder_hidden_states", "video"), ("audio_encoder_hidden_states", "audio")):
            connector = getattr(self.connectors, f"{side}_connector")
            own = connector.learnable_registers.detach().numpy()[np.arange(rows.shape[1]) % REGISTERS]
            packed = torch.from_numpy(np.where(feeds["token_mask"][..., np.newaxis] > 0, rows, own))
            with torch.no_grad():
                outputs[name] = connector(packed, torch.zeros(len(rows), 1, 1, rows.shape[1]))[0].numpy()
        return outputs


@pytest.mark.parametrize("asked", [{}, {"num_videos_per_prompt": 2}, {"negative_prompt": ["the snow", "sings"]}])
@pytest.mark.parametrize("embedded", [False, True])
def test_prompts_become_what_diffusers_attends_to(
    tokenizer: Tokenizer, gemma: Any, asked: dict[str, Any], embedded: bool
) -> None:
    connectors = make_connectors(REGISTERS)
    sessions: Any = {"text_encoder": TextEncoder(connectors), "connectors": ConnectorsGraph(connectors)}
    models: Any = SimpleNamespace(tokenizer=tokenizer, session=sessions.__getitem__, prompts=PromptCache(1 << 20))
    told = make_host(make_transformer())
    told["connectors"] |= {"registers": REGISTERS}
    given: dict[str, Any] = {"prompt": PROMPTS[:2], "max_sequence_length": 12}
    sides = {"negative": asked.get("negative_prompt", [""] * 2), "positive": PROMPTS[:2]}
    tokens = {
        side: gemma([each.strip() for each in prompts], padding="max_length", max_length=12, return_tensors="np")
        for side, prompts in sides.items()
    }
    if embedded:  # the same features, made before
        ids, mask = tokens["positive"].input_ids, tokens["positive"].attention_mask
        rows = [
            sessions["text_encoder"].run({"input_ids": ids[row, None], "attention_mask": mask[row, None]})
            for row in range(2)
        ]
        embeds = np.concatenate([row["prompt_embeds"] for row in rows])
        given = {"prompt_embeds": embeds, "prompt_attention_mask": mask.astype(np.float32), "max_sequence_length": 12}
    request = LTX2Request.resolve(given, asked, DEFAULTS)
    made = texts(models, request, Host.parse(told), ("negative", "positive", "isolated"))
    assert list(made) == ["negative", "positive"]
    for side, each in tokens.items():
        hidden = sessions["text_encoder"].table[torch.from_numpy(each.input_ids)]
        with torch.no_grad():
            video, audio, _ = connectors(hidden, torch.from_numpy(each.attention_mask), padding_side="left")
        for ours, theirs in zip(made[side], (video, audio), strict=True):
            expected = theirs.repeat_interleave(request.num_videos_per_prompt, dim=0).numpy()
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
