"""`memory_limit` over whole runs, and prompts that are not encoded again: the same bits, with less."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import telecine
from telecine.backends.onnxruntime import OnnxRuntimeSession
from telecine.errors import RequestError
from telecine.families.bound import BoundTransformer
from telecine.pipeline import Pipeline

SMALL: dict[str, Any] = {"height": 64, "width": 32, "num_frames": 9, "num_inference_steps": 2, "seed": 0}
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 64, 32, 3), np.uint8)
GENEROUS = "4GiB"


@pytest.fixture
def pipe(tiny_bundle: Path) -> Iterator[Pipeline]:
    with telecine.load(tiny_bundle) as pipeline:
        yield pipeline


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The components that were run, in order."""
    seen: list[str] = []
    run = OnnxRuntimeSession.enqueue

    def enqueue(self: OnnxRuntimeSession, stream: int = 0) -> None:
        assert self._network is not None
        seen.append(self._network.path.parent.name)
        run(self, stream)

    monkeypatch.setattr(OnnxRuntimeSession, "enqueue", enqueue)
    return seen


def least(pipe: Pipeline, **request: Any) -> str:
    """The limit that a refusal names."""
    with pytest.raises(RequestError, match="memory_limit is") as refused:
        pipe.generate("a", memory_limit=1, **SMALL | request)
    return refused.value.expected.split()[2]


def loaded(pipe: Pipeline) -> set[str]:
    return {component for component, _ in pipe._models._sessions}


class TestLimit:
    def test_the_least_that_a_refusal_names_is_enough_and_changes_no_bit(self, pipe: Pipeline) -> None:
        limit = least(pipe)
        free = pipe.generate("a", **SMALL)
        assert loaded(pipe) == {"text_encoder", "transformer", "vae_decoder"}
        tight = pipe.generate("b", memory_limit=limit, **SMALL)
        assert loaded(pipe) == {"vae_decoder"}
        again = pipe.generate("a", memory_limit=limit, **SMALL)
        np.testing.assert_array_equal(free.frames, again.frames)
        assert free.memory.limit is None
        assert tight.memory.limit is not None
        assert free.memory.predicted > tight.memory.limit >= tight.memory.predicted

    @pytest.mark.parametrize(
        "given",
        [
            {"image": PIXELS[0]},
            {"conditions": telecine.Condition(image=PIXELS[0], frame_index=8)},
            {"conditions": [telecine.Condition(video=PIXELS), telecine.Condition(image=PIXELS[0], frame_index=8)]},
            {"num_videos_per_prompt": 2, "seed": None},
        ],
        ids=["image", "keyframe", "video", "batch"],
    )
    def test_and_so_it_is_with_conditions_and_batches(self, pipe: Pipeline, given: dict[str, Any]) -> None:
        limit = least(pipe, **given)
        result = pipe.generate("a", memory_limit=limit, **SMALL | given)
        assert result.memory.predicted <= result.memory.limit
        assert loaded(pipe) == {"vae_decoder"}

    def test_what_fits_stays_loaded(self, pipe: Pipeline) -> None:
        first, second = (pipe.generate("a", memory_limit=GENEROUS, **SMALL) for _ in range(2))
        assert "load" in first.timings
        assert "load" not in second.timings

    def test_guidance_runs_one_by_one_where_a_batch_is_too_much(
        self, pipe: Pipeline, ran: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # 960 tokens: below the number from which they do so anyway. Latents: no decoder that takes more.
        request = SMALL | {"height": 512, "width": 480, "num_frames": 25, "output_type": "latent"}
        together = pipe.generate("a", memory_limit=GENEROUS, **request)
        assert ran.count("transformer") == 2
        ran.clear()
        apart = pipe.generate("a", memory_limit=least(pipe, **request), **request)
        assert ran.count("transformer") == 4
        # Two rows of one product or one of two: float32 rounding.
        np.testing.assert_allclose(apart.latents, together.latents, atol=1e-5)

    def test_tiles_come_last(self, pipe: Pipeline) -> None:
        request = SMALL | {"height": 32, "num_frames": 161}
        whole = pipe.generate("a", **request)
        predicted = whole.memory.predicted
        assert predicted is not None
        # Less than all at once, enough for the decoder alone: only networks go.
        np.testing.assert_array_equal(
            pipe.generate("a", memory_limit=predicted - 2**20, **request).frames, whole.frames
        )
        tiled = pipe.generate("a", memory_limit=least(pipe, **request), **request)
        assert np.abs(np.subtract(tiled.frames, whole.frames)).max() > 0

    def test_frames_that_are_kept_count_and_those_of_a_stream_do_not(self, pipe: Pipeline) -> None:
        request = SMALL | {"height": 32, "num_frames": 161}
        kept = pipe.generate("a", **request).memory.predicted
        with pipe.stream("a", **request) as stream:
            assert stream.memory.predicted == kept - 161 * 32 * 32 * 3 * 4

    def test_weights_that_were_replaced_stay_beside(self, pipe: Pipeline, tiny_source: Path) -> None:
        own = pipe.generate("a", **SMALL).memory.predicted
        pipe.load_weights("transformer", tiny_source / "transformer")
        size = pipe.bundle.component("transformer").weights.size
        assert pipe.generate("a", **SMALL).memory.predicted == own + size
        pipe.unload_weights("transformer")
        assert pipe.generate("a", **SMALL).memory.predicted == own

    def test_two_stages(self, upscaler_bundle: Path) -> None:
        request = SMALL | {
            "height": 64,
            "width": 64,
            "second_stage": {"num_inference_steps": 2, "denoise_strength": 0.5},
        }
        with telecine.load(upscaler_bundle) as pipe:
            limit = least(pipe, **request)
            free = pipe.generate("a", **request)
            tight = pipe.generate("a", memory_limit=limit, **request)
            assert loaded(pipe) == {"vae_decoder"}
        np.testing.assert_array_equal(free.frames, tight.frames)

    def test_upscaling(self, upscaler_bundle: Path) -> None:
        latents = np.random.default_rng(0).standard_normal((1, 16, 2, 2, 2), np.float32)
        with telecine.load(upscaler_bundle) as pipe:
            free = pipe.upscale(latents=latents, seed=0)
            with pytest.raises(RequestError, match="memory_limit is") as refused:
                pipe.upscale(latents=latents, seed=0, memory_limit=1)
            tight = pipe.upscale(latents=latents, seed=0, memory_limit=refused.value.expected.split()[2])
            assert loaded(pipe) == {"vae_decoder"}
        np.testing.assert_array_equal(free.frames, tight.frames)


MEASURED = """
import json, sys
import numpy as np
import telecine
request = json.loads(sys.argv[2])
if "video" in request:
    request["video"] = np.zeros((*request["video"], 3), np.uint8)
with telecine.load(sys.argv[1], options=telecine.OnnxRuntimeOptions(threads=1)) as pipe:
    runs = [pipe.generate("a red ball", seed=0, num_inference_steps=2, **request).memory for _ in range(2)]
print(json.dumps([[memory.predicted, memory.measured] for memory in runs]))
"""


@pytest.fixture
def cogvideox_bundle(cogvideox: Callable[..., tuple[Path, Path]]) -> Path:
    return cogvideox("2b")[1]


@pytest.fixture
def ltx2_bundle(ltx2: Callable[..., tuple[Path, Path, Path]]) -> Path:
    return ltx2("2.3")[2]


# Texts as long as usual, which Gemma attends to with a mask: with all scores in memory.
LTX2: dict[str, Any] = {"height": 64, "width": 96, "num_frames": 9, "spatio_temporal_guidance_blocks": [1]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("model", "request_"),
    [
        ("tiny_bundle", {"height": 64, "width": 96, "num_frames": 9}),  # libraries are nearly all of it
        ("demo_bundle", {"height": 96, "width": 96, "num_frames": 97}),
        ("demo_bundle", {"height": 96, "width": 96, "num_frames": 97, "memory_limit": "170MiB"}),
        ("cogvideox_bundle", {"height": 96, "width": 160, "num_frames": 33}),
        ("cogvideox_bundle", {"height": 96, "width": 160, "num_frames": 33, "memory_limit": "170MiB"}),
        ("cogvideox_bundle", {"height": 96, "width": 96, "video": [17, 96, 96]}),
        ("ltx2_bundle", LTX2),
        ("ltx2_bundle", LTX2 | {"max_sequence_length": 2048, "height": 192, "width": 192, "num_frames": 17}),
    ],
    ids=["tiny", "demo", "demo-tiled", "cogvideox", "cogvideox-tiled", "cogvideox-video", "ltx2", "ltx2-long-text"],
)
def test_the_predicted_peak_is_above_the_measured_one_and_near(
    model: str, request_: dict[str, Any], request: Any, record_property: Callable[[str, object], None]
) -> None:
    """In a process of its own. ONNX Runtime's arena plans a known size anew at its second run, which takes more: the
    prediction is for that. 1.6 leaves room for decoders of other shapes (`tiling.memory.COPIES`)."""
    command = [sys.executable, "-c", MEASURED, str(request.getfixturevalue(model)), json.dumps(request_)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    runs = json.loads(done.stdout)
    predicted = max(each for each, _ in runs)
    measured = max(each for _, each in runs if each)
    record_property("measured", f"{model} {request_}: {predicted / 2**20:.0f} MiB predicted, {measured / 2**20:.0f}")
    assert measured <= predicted <= 1.6 * measured
    if "memory_limit" in request_:
        assert measured <= 170 * 2**20


class TestPrompts:
    def test_a_repeated_prompt_is_not_encoded_again(self, pipe: Pipeline, ran: list[str]) -> None:
        first = pipe.generate("a", negative_prompt="b", **SMALL)
        assert ran.count("text_encoder") == 2
        again = pipe.generate("a", negative_prompt="b", **SMALL)
        pipe.generate("c", negative_prompt="b", **SMALL)
        assert ran.count("text_encoder") == 3
        np.testing.assert_array_equal(first.frames, again.frames)

    def test_clones_share_them_and_need_no_text_encoder(self, pipe: Pipeline) -> None:
        first = pipe.generate("a", **SMALL)
        with pipe.clone() as clone:
            again = clone.generate("a", **SMALL)
            assert "text_encoder" not in loaded(clone)
        np.testing.assert_array_equal(first.frames, again.frames)

    def test_other_weights_encode_anew(self, pipe: Pipeline, tiny_source: Path, plain_source: Path) -> None:
        request = SMALL | {"output_type": "latent"}
        first = pipe.generate("a", **request)
        pipe.load_weights("text_encoder", plain_source / "text_encoder")
        other = pipe.generate("a", **request)
        assert np.abs(np.subtract(first.latents, other.latents)).max() > 1e-3
        pipe.unload_weights("text_encoder")
        np.testing.assert_array_equal(first.latents, pipe.generate("a", **request).latents)

    def test_other_weights_of_the_transformer_keep_them(
        self, pipe: Pipeline, tiny_source: Path, ran: list[str]
    ) -> None:
        pipe.generate("a", **SMALL)
        pipe.load_weights("transformer", tiny_source / "transformer")
        ran.clear()
        pipe.generate("a", **SMALL)
        assert "text_encoder" not in ran

    def test_turned_off(self, tiny_bundle: Path, ran: list[str]) -> None:
        with telecine.load(tiny_bundle, prompt_cache=0) as pipe:
            for _ in range(2):
                pipe.generate("a", **SMALL)
        assert ran.count("text_encoder") == 4

    @pytest.mark.parametrize("size", [-1, "much", None, 1.5])
    def test_what_is_no_size(self, tiny_bundle: Path, size: Any) -> None:
        with pytest.raises(RequestError, match="prompt_cache is"):
            telecine.load(tiny_bundle, prompt_cache=size)


class TestLoadingAhead:
    def test_the_transformer_loads_while_the_text_is_encoded(
        self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun: dict[str, threading.Event] = {name: threading.Event() for name in ("text_encoder", "transformer")}
        load, run = OnnxRuntimeSession.load, OnnxRuntimeSession.enqueue

        def loading(graph: Any, path: Path, **options: Any) -> OnnxRuntimeSession:
            if path.parent.name == "transformer":
                begun["transformer"].set()
                assert begun["text_encoder"].wait(30), "the text encoder waits for the transformer"
            return load(graph, path, **options)

        def running(self: OnnxRuntimeSession, stream: int = 0) -> None:
            if self._network.path.parent.name == "text_encoder":
                assert begun["transformer"].wait(30), "the transformer waits for the text encoder"
                begun["text_encoder"].set()
            run(self, stream)

        monkeypatch.setattr(OnnxRuntimeSession, "load", loading)
        monkeypatch.setattr(OnnxRuntimeSession, "enqueue", running)
        assert pipe.generate("a", **SMALL).frames is not None

    def test_not_where_the_limit_has_no_room_for_both(self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        limit = least(pipe)
        held: list[set[str]] = []
        run = BoundTransformer.__call__

        def call(self: BoundTransformer, *arguments: Any) -> Any:
            held.append(loaded(pipe))
            return run(self, *arguments)

        monkeypatch.setattr(BoundTransformer, "__call__", call)
        pipe.generate("a", memory_limit=limit, **SMALL)
        assert held == [{"transformer"}] * 2

    def test_a_failure_ahead_is_told_by_the_stage_that_needs_it(
        self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = OnnxRuntimeSession.load

        def failing(graph: Any, path: Path, **options: Any) -> OnnxRuntimeSession:
            if path.parent.name == "transformer":
                raise telecine.BackendError("no transformer", expected="one", fix="Find it.")
            return load(graph, path, **options)

        monkeypatch.setattr(OnnxRuntimeSession, "load", failing)
        with pytest.raises(telecine.BackendError, match="no transformer"):
            pipe.generate("a", **SMALL)
        monkeypatch.setattr(OnnxRuntimeSession, "load", load)
        assert pipe.generate("a", **SMALL).frames is not None
