"""`load`, `generate`, `save`: presets, seeds, callbacks, clones, and what a pipeline refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import telecine
from telecine import results
from telecine.backends.onnxruntime import OnnxRuntimeSession
from telecine.errors import BackendError, BundleError, Cancelled, RequestError
from telecine.families import vae as decoding
from telecine.pipeline import Pipeline, load
from telecine.results import FrameStream, numbered

SMALL: dict[str, Any] = {"height": 64, "width": 32, "num_frames": 9, "num_inference_steps": 2, "seed": 0}


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> Iterator[Pipeline]:
    with telecine.load(tiny_bundle) as pipeline:
        yield pipeline


@pytest.fixture
def no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **options: object) -> None:
        pytest.fail("a network was loaded before the request was refused")

    monkeypatch.setattr(OnnxRuntimeSession, "load", load)


class TestGenerate:
    def test_frames_seeds_and_timings(self, pipe: Pipeline) -> None:
        result = pipe.generate("a red ball", **SMALL)
        assert result.frames is not None
        assert (result.frames.shape, result.frames.dtype) == ((1, 9, 64, 32, 3), np.float32)
        assert 0 <= result.frames.min() <= result.frames.max() <= 1
        assert (result.seeds, result.frame_rate, result.latents) == ((0,), 25.0, None)
        assert result.timings["total"] >= result.timings["denoise"] >= result.timings["network"] > 0

    def test_loading_is_a_stage_of_its_own_and_happens_once(self, tiny_bundle: Path) -> None:
        with telecine.load(tiny_bundle) as pipe:
            first, second = (pipe.generate("a red ball", **SMALL).timings for _ in range(2))
        assert set(first) == {"load", "text", "denoise", "network", "decode", "total"}
        assert set(second) == set(first) - {"load"}
        for timings in (first, second):
            parts = [timings.get(name, 0.0) for name in ("load", "text", "denoise", "decode")]
            assert sum(parts) <= timings["total"]

    def test_a_random_seed_is_told(self, pipe: Pipeline) -> None:
        first = pipe.generate("a red ball", **SMALL | {"seed": None})
        second = pipe.generate("a red ball", **SMALL | {"seed": first.seeds[0]})
        np.testing.assert_array_equal(first.frames, second.frames)

    def test_presets_give_what_is_not_asked(self, tiny_bundle: Path, edited_bundle: Callable[..., Path]) -> None:
        preset = {"guidance_scale": 1.0, "num_inference_steps": 3, "decode_timestep": 0.05}
        seen: list[int] = []
        with telecine.load(edited_bundle(tiny_bundle, presets={"quick": preset})) as pipe:
            small = {name: value for name, value in SMALL.items() if name != "num_inference_steps"}
            by_name = pipe.generate("a", preset="quick", callback=lambda i, n, *_: seen.append(n), **small)
            asked = pipe.generate("a", **small | preset)
            more = pipe.generate("a", preset="quick", **small | {"guidance_scale": 3.0})
        assert seen == [3, 3, 3]
        np.testing.assert_array_equal(by_name.frames, asked.frames)
        assert np.abs(np.subtract(more.frames, asked.frames)).max() > 1e-3

    def test_a_preset_may_hold_lists(self, tiny_bundle: Path, edited_bundle: Callable[..., Path]) -> None:
        preset = {
            "guidance_sigmas": [1.0, 0.5], "guidance_scale": [1.0, 4.0], "cfg_star": True,
            "stg_scale": [0.0, 1.0], "stg_blocks": [[], [0, 1]], "stg_mode": "attention_skip",
        }  # fmt: skip
        with telecine.load(edited_bundle(tiny_bundle, presets={"official": preset})) as pipe:
            by_name = pipe.generate("a", preset="official", **SMALL)
            asked = pipe.generate("a", **SMALL | preset)
            other = pipe.generate("a", preset="official", **SMALL | {"stg_scale": 0.0})
        np.testing.assert_array_equal(by_name.frames, asked.frames)
        assert np.abs(np.subtract(other.frames, asked.frames)).max() > 1e-3

    def test_a_preset_that_sets_the_unknown(self, tiny_bundle: Path, edited_bundle: Callable[..., Path]) -> None:
        with (
            telecine.load(edited_bundle(tiny_bundle, presets={"odd": {"sharpness": 1}})) as pipe,
            pytest.raises(BundleError, match="a preset sets sharpness"),
        ):
            pipe.generate("a", preset="odd")

    def test_the_callback_sees_every_step_and_may_replace_latents(self, pipe: Pipeline) -> None:
        seen: list[tuple[int, int, float]] = []

        def zero(step: int, steps: int, sigma: float, latents: np.ndarray) -> np.ndarray:
            seen.append((step, steps, sigma))
            return np.zeros_like(latents)

        result = pipe.generate("a", callback=zero, output_type="latent", **SMALL)
        assert [(step, steps) for step, steps, _ in seen] == [(0, 2), (1, 2)]
        assert seen[0][2] > seen[1][2] > 0
        assert result.latents is not None
        assert not result.latents.any()

    def test_the_callback_stops_the_run(self, pipe: Pipeline) -> None:
        with pytest.raises(Cancelled, match="after step 1 of 2"):
            pipe.generate("a", callback=lambda *_: False, **SMALL)
        assert pipe.generate("a", **SMALL).frames is not None  # it is free again

    def test_latents_of_another_shape_from_the_callback(self, pipe: Pipeline) -> None:
        with pytest.raises(RequestError, match="callback"):
            pipe.generate("a", callback=lambda *_: np.zeros((1, 2, 3), np.float32), **SMALL)


class TestStream:
    # 9 latents of frames, in tiles of 7: three of them.
    LONG: ClassVar[dict[str, Any]] = SMALL | {"height": 32, "num_frames": 65, "tiling": "seamless", "tile_frames": 56}

    def test_its_frames_are_generates(self, pipe: Pipeline) -> None:
        for output_type in ("np", "uint8"):
            whole = pipe.generate("a", output_type=output_type, **self.LONG)
            with pipe.stream("a", output_type=output_type, **self.LONG) as stream:
                pieces = list(stream)
            assert len(pieces) == 3
            np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole.frames)
            assert (stream.shape, stream.seeds) == ((1, 65, 32, 32, 3), (0,))
            assert set(stream.timings) == {"text", "denoise", "network", "decode", "total"}

    def test_a_batch(self, pipe: Pipeline) -> None:
        request = self.LONG | {"num_videos_per_prompt": 2, "seed": [1, 2]}
        whole = pipe.generate("a", **request)
        np.testing.assert_array_equal(np.concatenate(list(pipe.stream("a", **request)), axis=1), whole.frames)

    def test_tiles_hide_in_the_picture(self, pipe: Pipeline) -> None:
        whole = pipe.generate("a", **self.LONG | {"tiling": "off", "tile_frames": None})
        tiled = pipe.generate("a", **self.LONG)
        apart = np.subtract(whole.frames, tiled.frames)
        assert 0 < np.abs(apart).mean() < 0.02

    def test_the_pipeline_is_busy_until_the_stream_ends(self, pipe: Pipeline) -> None:
        stream = pipe.stream("a", **self.LONG)
        next(stream)
        with pytest.raises(RequestError, match="running another request"):
            pipe.generate("a", **SMALL)
        stream.close()
        assert list(stream) == []
        assert pipe.generate("a", **SMALL).frames is not None

    def test_a_stream_that_is_dropped_frees_the_pipeline(self, pipe: Pipeline) -> None:
        next(pipe.stream("a", **self.LONG))
        assert pipe.generate("a", **SMALL).frames is not None

    def test_saving_writes_what_generate_saves(self, pipe: Pipeline, tmp_path: Path) -> None:
        pipe.generate("a", **self.LONG).save(tmp_path / "whole" / "%02d.png")
        (path,) = pipe.stream("a", **self.LONG).save(tmp_path / "pieces" / "%02d.png")
        assert path == tmp_path / "pieces" / "%02d.png"
        assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
            file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()
        }

    def test_a_file_that_fails_halfway_is_absent(self, pipe: Pipeline, tmp_path: Path) -> None:
        stream = pipe.stream("a", **self.LONG)
        first = np.zeros((1, 9, *stream.shape[2:]), np.float32)
        stream._run.close()

        def broken() -> Iterator[np.ndarray]:
            yield first
            raise BackendError("the network failed", expected="a piece", fix="None.")

        stream._run = broken()  # type: ignore[assignment]
        with pytest.raises(BackendError, match="the network failed"):
            stream.save(tmp_path / "clip.mp4")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("begin", [next, FrameStream.close, FrameStream.whole], ids=["read", "closed", "whole"])
    def test_frames_that_are_gone_are_not_made_up(self, begin: Any, pipe: Pipeline, tmp_path: Path) -> None:
        with pipe.stream("a", **self.LONG) as stream:
            begin(stream)
            with pytest.raises(RequestError, match="read from or closed"):
                stream.whole()
            with pytest.raises(RequestError, match="read from or closed"):
                stream.save(tmp_path / "clip.gif")
        assert list(tmp_path.iterdir()) == []

    def test_a_path_that_is_refused_costs_no_frames(self, pipe: Pipeline, tmp_path: Path) -> None:
        stream = pipe.stream("a", **self.LONG)
        with pytest.raises(RequestError, match="clip.xyz"):
            stream.save(tmp_path / "clip.xyz")
        stream.save(tmp_path / "clip.gif", frame_rate=10)
        assert (tmp_path / "clip.gif").stat().st_size > 0

    def test_a_piece_that_fails_frees_the_pipeline(self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with load(tiny_bundle) as pipe:
            stream = pipe.stream("a", **self.LONG)
            next(stream)
            with monkeypatch.context() as patch:
                decoder = pipe._models.session("vae_decoder")
                patch.setattr(decoder, "run", lambda feeds: np.empty(2**50))  # a MemoryError of NumPy's
                with pytest.raises(BackendError, match="memory"):
                    next(stream)
            assert list(stream) == []
            assert pipe.generate("a", **SMALL).frames is not None

    def test_one_reader_at_a_time(self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with load(tiny_bundle) as pipe, pipe.stream("a", **self.LONG) as stream:
            decoder = pipe._models.session("vae_decoder")
            run = decoder.run

            def meddle(feeds: Any) -> Any:  # while a piece is made, as another thread would
                touches: tuple[Any, ...] = (next, FrameStream.close)
                for touch in touches:
                    with pytest.raises(RequestError, match="another thread is reading"):
                        touch(stream)
                return run(feeds)

            monkeypatch.setattr(decoder, "run", meddle)
            assert len(list(stream)) == 3

    def test_what_is_no_stream(self, pipe: Pipeline) -> None:
        with pytest.raises(RequestError, match="a stream of latents"):
            pipe.stream("a", output_type="latent", **SMALL)
        with pytest.raises(TypeError, match="sharpness"):
            pipe.stream("a", sharpness=1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("request_", "words"),
        [
            ({"height": 100}, "Use 96 or 128"),
            ({"prompt": None}, "neither given"),
            ({"prompt_embeds": np.zeros((1, 4, 32))}, "prompt and prompt_embeds given"),
            ({"prompt": None, "prompt_embeds": np.zeros((1, 4, 32))}, "without prompt_attention_mask"),
            (
                {"prompt": None, "prompt_embeds": np.zeros((1, 4, 9)), "prompt_attention_mask": np.ones((1, 4))},
                "1, L, 32",
            ),
            (
                {
                    "prompt": None,
                    "prompt_embeds": np.full((1, 4, 32), np.nan),
                    "prompt_attention_mask": np.ones((1, 4)),
                },
                "NaN",
            ),
            ({"output_type": "pil"}, "expected one of np, uint8, latent"),
            ({"preset": "best"}, "preset 'best'"),
            ({"pipeline": "LTXVideoPipeline"}, "expected one of LTXPipeline"),
            ({"seed": [1, 2]}, "2 seeds"),
            ({"seed": "lucky"}, "seed is 'lucky'"),
            ({"latents": np.zeros((1, 3, 16))}, "latents have shape"),
            ({"latents": np.full((1, 4, 16), np.inf)}, "NaN or infinity"),
            ({"decode_timestep": [0.1, 0.2]}, "decode_timestep is"),
            ({"decode_noise_scale": float("nan")}, "decode_noise_scale is"),
            ({"guidance_scale": float("inf")}, "guidance_scale is"),
            ({"guidance_rescale": 2}, "from 0 to 1"),
            ({"guidance_scale": [3.0]}, "guidance_scale has 1 values; expected 2"),
            ({"timesteps": [900, 500, 100], "guidance_scale": [3.0, 1.0]}, "guidance_scale has 2 values; expected 3"),
            ({"stg_scale": 1.0}, "no stg_blocks"),
            ({"stg_scale": 1.0, "stg_blocks": [2]}, "stg_blocks has 2; expected indexes from 0 to 1"),
            ({"stg_mode": "residual"}, "no residual of its own"),
            ({"guidance_sigmas": [0.5, 0.9]}, "strictly descending"),
            ({"frame_rate": 0}, "frame_rate is 0"),
            ({"num_inference_steps": 0}, "num_inference_steps is 0"),
            ({"num_inference_steps": 1}, "Use at least 2 inference steps"),  # shift_terminal needs two
            ({"timesteps": [500, 900]}, "strictly descending"),
            ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0"),
            ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
            ({"max_sequence_length": 0}, "max_sequence_length is 0"),
            ({"num_frames": 0}, "num_frames is 0"),
            ({"width": 64.0}, "width is 64.0; expected a whole number"),
            ({"height": 32 * 10**12}, "pixels in all"),  # would overflow an array, not only memory
            ({"prompt_attention_mask": np.ones((1, 4))}, "prompt_attention_mask without prompt_embeds"),
            (
                {"negative_prompt_embeds": np.zeros((1, 4, 32)), "negative_prompt_attention_mask": np.ones((1, 4))},
                "text length of 4; expected 128",
            ),
            ({"latents": "noise"}, "latents holds <U5; expected numbers"),
            ({"tiling": "on"}, "tiling is 'on'"),
            ({"tile_size": 100, "tile_stride": 32}, "tile_size is 100; expected a multiple of 32"),
            ({"memory_limit": "1KB"}, "memory_limit is .*; expected at least"),
        ],
    )
    def test_before_any_network_is_loaded(
        self, request_: dict[str, Any], words: str, tiny_bundle: Path, no_sessions: None
    ) -> None:
        with telecine.load(tiny_bundle) as pipe, pytest.raises(RequestError, match=words):
            pipe.generate(**{"prompt": "a"} | SMALL | request_)

    @pytest.mark.parametrize("options", [{"backend": "jax"}, {"device": "tpu"}, {"device": "cuda:x"}])
    def test_backends_and_devices_that_are_not_here(self, options: dict[str, str], tiny_bundle: Path) -> None:
        with pytest.raises(BackendError):
            telecine.load(tiny_bundle, **options)

    def test_another_family(self, tiny_bundle: Path, edited_bundle: Callable[..., Path]) -> None:
        with pytest.raises(BundleError, match="holds a wan model; expected one of ltx-video"):
            telecine.load(edited_bundle(tiny_bundle, family="wan"))

    def test_a_bundle_of_an_unknown_pipeline_runs_where_that_is_said(
        self, tiny_bundle: Path, edited_bundle: Callable[..., Path], pipe: Pipeline
    ) -> None:
        with telecine.load(edited_bundle(tiny_bundle, pipeline="LTXMultiPromptPipeline")) as other:
            with pytest.raises(RequestError, match="Pass pipeline='LTXPipeline'"):
                other.generate("a", **SMALL)
            same = other.generate("a", pipeline="LTXPipeline", **SMALL)
        np.testing.assert_array_equal(same.frames, pipe.generate("a", **SMALL).frames)

    def test_a_closed_pipeline(self, tiny_bundle: Path) -> None:
        pipe = telecine.load(tiny_bundle)
        pipe.close()
        with pytest.raises(RequestError, match="closed"):
            pipe.generate("a", **SMALL)
        with pytest.raises(RequestError, match="closed"):
            pipe.clone()
        pipe.close()

    def test_a_long_prompt_is_cut_with_a_warning(self, pipe: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
        cut = pipe.generate("a red ball rolls away", max_sequence_length=4, **SMALL)
        assert "longer than max_sequence_length=4 tokens; cut off: " in caplog.text
        assert "away" in caplog.text
        other = pipe.generate("a red ball stands still", max_sequence_length=4, **SMALL)
        np.testing.assert_array_equal(cut.frames, other.frames)


# Run by itself: a limit on the address space cannot be taken back.
STARVED = """
import resource, sys
import numpy as np
import telecine

SMALL = dict(prompt="a", height=64, width=32, num_frames=9, num_inference_steps=2, seed=0)
options = telecine.OnnxRuntimeOptions(threads=1)
with telecine.load(sys.argv[1], options=options) as pipe:
    before = pipe.generate(**SMALL).frames
    size = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20),) * 2)
    network, noise = dict(height=512, width=512, num_frames=57), dict(height=1024, width=1024, num_frames=257)
    for sizes in (network, noise | dict(num_videos_per_prompt=60)):
        try:
            pipe.generate(**SMALL | sizes)
        except telecine.BackendError as error:
            print(str(error).partition(":")[0])
    np.testing.assert_array_equal(pipe.generate(**SMALL).frames, before)
    print("and again")
"""


class TestMemory:
    def test_a_request_that_does_not_fit_leaves_the_pipeline_usable(self, tiny_bundle: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", STARVED, str(tiny_bundle)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout.splitlines() == ["out of memory", "out of memory", "and again"], done.stderr
        assert done.stderr == ""

    def test_numpys_own_failures_are_backend_errors(self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise MemoryError("Unable to allocate 9 TiB")

        monkeypatch.setattr(decoding, "to_unit_range", fail)
        with pytest.raises(BackendError, match="out of memory: the host's arrays: Unable to allocate 9 TiB"):
            pipe.generate("a", **SMALL)

    def test_saving_runs_out_too(self, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def fail(*_: object) -> None:
            raise MemoryError

        result = pipe.generate("a", **SMALL)
        monkeypatch.setattr(results, "to_uint8", fail)
        with pytest.raises(BackendError, match=r"out of memory: saving .*clip\.gif"):
            result.save(tmp_path / "clip.gif")
        assert list(tmp_path.iterdir()) == []


class TestThreads:
    def test_one_request_at_a_time(self, pipe: Pipeline) -> None:
        def again(*_: object) -> None:
            with pytest.raises(RequestError, match="is running another request"):
                pipe.generate("b", **SMALL)

        assert pipe.generate("a", callback=again, **SMALL).frames is not None

    def test_clones_work_side_by_side(self, pipe: Pipeline) -> None:
        expected = {seed: pipe.generate("a", **SMALL | {"seed": seed}).frames for seed in range(4)}
        got: dict[int, Any] = {}

        def work(seed: int) -> None:
            with pipe.clone() as clone:
                got[seed] = clone.generate("a", **SMALL | {"seed": seed}).frames

        threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed, frames in expected.items():
            np.testing.assert_array_equal(got[seed], frames)

    def test_clones_load_each_network_once(self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[str] = []
        load = OnnxRuntimeSession.load

        def count(graph: Any, path: Path, **options: Any) -> OnnxRuntimeSession:
            loaded.append(path.parent.name)
            return load(graph, path, **options)

        monkeypatch.setattr(OnnxRuntimeSession, "load", count)
        first = telecine.load(tiny_bundle)
        second, third = first.clone(), first.clone()  # before anything is loaded
        threads = [threading.Thread(target=pipe.generate, args=("a",), kwargs=SMALL) for pipe in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(loaded) == ["text_encoder", "transformer", "vae_decoder"]
        first.close()
        third.generate("a", **SMALL)  # from the second's
        assert len(loaded) == 3
        second.close()
        third.close()


class TestSave:
    def test_a_batch(self, pipe: Pipeline, tmp_path: Path) -> None:
        result = pipe.generate(["a", "b"], **SMALL)
        assert result.save(tmp_path / "clip.gif") == [tmp_path / "clip-0.gif", tmp_path / "clip-1.gif"]
        assert all((tmp_path / f"clip-{i}.gif").stat().st_size for i in range(2))

    def test_floats_and_bytes_are_the_same_file(self, pipe: Pipeline, tmp_path: Path) -> None:
        pipe.generate("a", **SMALL).save(tmp_path / "floats" / "%05d.png")
        pipe.generate("a", output_type="uint8", **SMALL).save(tmp_path / "bytes" / "%05d.png")
        for path in sorted((tmp_path / "floats").iterdir()):
            assert path.read_bytes() == (tmp_path / "bytes" / path.name).read_bytes()

    def test_latents_are_no_video(self, pipe: Pipeline, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="holds latents"):
            pipe.generate("a", output_type="latent", **SMALL).save(tmp_path / "clip.mp4")

    def test_names(self) -> None:
        assert numbered(Path("a/b.mp4"), 1) == [Path("a/b.mp4")]
        assert numbered(Path("a/%05d.png"), 2) == [Path("a-0/%05d.png"), Path("a-1/%05d.png")]
        assert numbered("50%.mp4", 2) == [Path("50%-0.mp4"), Path("50%-1.mp4")]

    @pytest.mark.parametrize("path", ["%05d.png", "../%05d.png", "/%05d.png", ".."])
    def test_a_place_without_a_name_takes_no_number(self, path: str) -> None:
        with pytest.raises(RequestError, match="for 2 videos; expected a name that takes numbers"):
            numbered(path, 2)

    def test_nothing_is_written_unless_all_can_be(self, pipe: Pipeline, tmp_path: Path) -> None:
        result = pipe.generate(["a", "b"], **SMALL)
        (tmp_path / "clip-1.gif").mkdir()
        with pytest.raises(RequestError, match="clip-1.gif is a folder"):
            result.save(tmp_path / "clip.gif")
        assert [path.name for path in tmp_path.iterdir()] == ["clip-1.gif"]

    def test_a_frame_rate_of_0_is_not_the_default(self, pipe: Pipeline, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="the frame rate is 0"):
            pipe.generate("a", **SMALL).save(tmp_path / "clip.gif", frame_rate=0)

    def test_home_is_expanded(self, pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert pipe.generate("a", **SMALL).save("~/clip.gif") == [tmp_path / "clip.gif"]

    def test_the_seeds_of_a_result_make_it_again(self, pipe: Pipeline) -> None:
        first = pipe.generate(["a", "b"], **SMALL | {"seed": None})
        again = pipe.generate(["a", "b"], **SMALL | {"seed": first.seeds})
        np.testing.assert_array_equal(first.frames, again.frames)
