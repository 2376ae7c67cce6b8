"""What is loaded, and how: nothing that a run does not need, and rarely used weights as mapped files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import telecine
from telecine.backends.onnxruntime import OnnxRuntimeSession

pytest.importorskip("onnxruntime")

GROWTH = """
import json, sys
from pathlib import Path
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.peak_memory import anonymous_bytes

bundle, options = Bundle.open(sys.argv[1]), OnnxRuntimeOptions(threads=1)

def load(component, prepack):
    graph = bundle.graph(component)
    before = anonymous_bytes()
    session = OnnxRuntimeSession.load(graph, bundle.path(graph.file), device="cpu", options=options, prepack=prepack)
    return session, anonymous_bytes() - before

load("text_encoder", True)  # ONNX Runtime itself
print(json.dumps([load("transformer", prepack)[1] for prepack in (False, True)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_are_mapped_and_only_prepacking_copies_them(demo_bundle: Path) -> None:
    """The transformer's are 10.7 MiB; what ONNX Runtime holds of its graph is measured as 3."""
    done = subprocess.run([sys.executable, "-c", GROWTH, demo_bundle], capture_output=True, text=True, check=True)
    mapped, packed = json.loads(done.stdout)
    weights = telecine.Bundle.open(demo_bundle).component("transformer").weights.size
    assert mapped < weights / 2
    assert packed > 0.9 * weights


def test_the_text_encoder_alone_is_not_prepacked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepacked: dict[str, bool] = {}
    load = OnnxRuntimeSession.load

    def note(graph: Any, path: Path, **options: Any) -> OnnxRuntimeSession:
        prepacked[path.parent.name] = options["prepack"]
        return load(graph, path, **options)

    monkeypatch.setattr(OnnxRuntimeSession, "load", note)
    with telecine.load(tiny_bundle) as pipe:
        pipe.generate("a", height=32, width=32, num_frames=1, num_inference_steps=2)
    assert prepacked == {"text_encoder": False, "transformer": True, "vae_decoder": True}


def test_a_bundle_without_engines_imports_nothing_of_tensorrt(tiny_bundle: Path) -> None:
    code = "import sys, telecine; telecine.load(sys.argv[1]); print([m for m in sys.modules if 'tensorrt' in m])"
    done = subprocess.run([sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
