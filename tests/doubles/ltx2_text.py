"""The text path of a tiny LTX-2 as a source, without the networks behind it; and its graphs on ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from make_tiny_ltx2 import tiny_connectors
from tiny_gemma import tiny_gemma, tiny_gemma_tokenizer
from transformers import Gemma3ForConditionalGeneration

from telecine_export.export import Progress, export_component
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source, open_source


def make_text_source(folder: Path, *, style: str, gemma: Any = None, **connectors: Any) -> Source:
    """A folder with text_encoder, tokenizer and connectors; `gemma` and `connectors` override their configurations."""
    tokenizer = tiny_gemma_tokenizer(folder / "tokenizer")
    tiny_gemma(tokenizer, seed=0, **gemma or {}).save_pretrained(folder / "text_encoder")
    tiny_connectors(style=style, seed=0, **connectors).save_pretrained(folder / "connectors")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "LTX2Pipeline"}))
    return open_source(str(folder))


def export_session(source: Source, folder: Path, spec: GraphSpec) -> onnxruntime.InferenceSession:
    """One graph of a source, exported into the folder and loaded from there."""
    folder.mkdir(parents=True, exist_ok=True)
    export_component(source, folder, [spec], precision="fp32", opset=23, progress=Progress())
    path = folder / spec.component / "main.onnx"
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


class TorchText:
    """transformers' and diffusers' own modules of a source, as LTX2Pipeline runs them."""

    def __init__(self, source: Source) -> None:
        gemma: Any = Gemma3ForConditionalGeneration
        self.gemma = gemma.from_pretrained(source.root / "text_encoder", dtype=torch.float32).eval()
        self.connectors: Any = LTX2TextConnectors.from_pretrained(source.root / "connectors").eval()

    def hidden_states(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> torch.Tensor:
        """(B, L, C, layers + 1), stacked as in `LTX2Pipeline._get_gemma_prompt_embeds`."""
        with torch.no_grad():
            output = self.gemma(
                input_ids=torch.from_numpy(input_ids),
                attention_mask=torch.from_numpy(attention_mask),
                output_hidden_states=True,
            )
        return torch.stack(output.hidden_states, dim=-1)

    def connect(self, states: torch.Tensor, mask: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Of hidden states and their mask: the features of all projections side by side, and the outputs by name."""
        features: list[torch.Tensor] = []
        hooks = [
            module.register_forward_hook(lambda *call: features.append(call[2]))
            for name, module in self.connectors.named_children()
            if name.endswith("text_proj_in")
        ]
        with torch.no_grad():
            video, audio, _ = self.connectors(states.flatten(2, 3), torch.from_numpy(mask), padding_side="left")
        for hook in hooks:
            hook.remove()
        outputs = {"encoder_hidden_states": video.numpy(), "audio_encoder_hidden_states": audio.numpy()}
        return torch.cat(features, dim=-1).numpy(), outputs


def left_padded(random: np.random.Generator, vocabulary: int, length: int, tokens: tuple[int, ...]) -> Any:
    """(B, L) ids and mask of prompts of so many tokens."""
    mask = (np.arange(length) >= length - np.array(tokens)[:, None]).astype(np.int64)
    return np.where(mask > 0, random.integers(1, vocabulary, mask.shape), 0), mask
