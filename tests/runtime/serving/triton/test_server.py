"""The whole of it: a repository of `telecine triton` in a real tritonserver, asked by NVIDIA's client."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_requests import Tensors, as_json, floats, ints, pixels, text

from telecine.bundle import Bundle
from telecine.serving.triton.config import Placement
from telecine.serving.triton.repository import RepositoryOptions, write_repository

MODEL = "telecine"
SMALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2}
SMALL_TENSORS = {name: ints(value) for name, value in SMALL.items()}
PROMPT = {"prompt": text("a red ball rolls to the left"), **SMALL_TENSORS}
# Models of the same server, by their names, in the style of these releases.
COGVIDEOX = {"cogvideox": "2b", "cogvideox-image": "5b-I2V"}
# Minutes of work, where nothing stops it.
ENDLESS = PROMPT | {"num_inference_steps": ints(100_000)}


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, triton_environment: Any) -> Callable[..., Path]:
    """`write(bundle, name)`: a repository of it, for this server."""

    def make(bundle: Path, name: str = MODEL) -> Path:
        folder = tmp_path_factory.mktemp("triton") / "repository"
        options = RepositoryOptions(
            name=name,
            placement=Placement(devices=("cpu",)),
            concurrency=2,
            threads=1,
            environment=str(triton_environment.folder),
        )
        assert write_repository(Bundle.open(bundle), folder, options) == [name]
        return folder

    return make


@pytest.fixture(scope="module")
def repository(write: Callable[..., Path], demo_bundle: Path) -> Path:
    return write(demo_bundle)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, triton_environment: Any, repository: Path, write: Callable[..., Path],
    cogvideox: Callable[..., tuple[Path, Path]], ltx2: Callable[..., tuple[Path, Path, Path]],
) -> Iterator[Any]:  # fmt: skip
    """One for all models: each has a repository of its own."""
    bundles = {name: cogvideox(style)[1] for name, style in COGVIDEOX.items()} | {"ltx2": ltx2("2.3")[2]}
    others = [f"--model-repository={write(bundle, name)}" for name, bundle in bundles.items()]
    with triton_environment.serve(repository, tmp_path_factory.mktemp("server"), *others) as running:
        yield running


@pytest.fixture
def infer(call: Callable[..., Any], server: Any) -> Callable[..., Any]:
    """`infer([tensors, ...], clients)`: the events of each request."""
    return lambda requests, clients=1: call("infer", server.url, MODEL, requests, clients)


def fifty_requests() -> list[tuple[dict[str, Any], Tensors]]:
    """As parameters of `generate`, and as tensors."""
    requests: list[tuple[dict[str, Any], Tensors]] = []
    for seed in range(50):
        prompt = f"a {['red', 'blue', 'white'][seed % 3]} ball rolls to the left"
        asked: dict[str, Any] = SMALL | {"prompt": prompt, "seed": seed}
        tensors: Tensors = SMALL_TENSORS | {"prompt": text(prompt), "seed": ints(seed)}
        if seed % 5 == 1:
            asked |= {"width": 96, "guidance_scale": 1.0, "frame_rate": 24.5, "num_frames": 17}
            tensors |= {"width": ints(96), "guidance_scale": floats(1.0), "frame_rate": floats(24.5)}
            tensors |= {"num_frames": ints(17)}
        elif seed % 5 == 2:
            asked |= {"prompt": [prompt, "a green square"], "negative_prompt": "white", "seed": [seed, seed + 1]}
            tensors |= {"prompt": text(prompt, "a green square"), "negative_prompt": text("white")}
            tensors |= {"seed": ints(seed, seed + 1), "guidance_rescale": floats(0.3)}
            asked |= {"guidance_rescale": 0.3}
        elif seed % 5 == 3:
            image = pixels(seed, 48, 80)
            asked |= {"image": image}
            tensors |= {"image": image[np.newaxis]}
        elif seed % 5 == 4:
            frames = pixels(seed, 3, 64, 64)
            asked |= {"stg_scale": 1.0, "stg_blocks": [1], "guidance_scale": [3.0, 1.5]}
            asked |= {"conditions": [{"image": frames[0]}, {"image": frames[2], "frame_index": 8, "strength": 0.7}]}
            tensors |= {"stg_scale": floats(1.0), "stg_blocks": as_json([1]), "guidance_scale": floats(3.0, 1.5)}
            tensors |= {"condition_frames": frames}
            tensors |= {"conditions": as_json([{"image": 0}, {"image": 2, "frame_index": 8, "strength": 0.7}])}
        requests.append((asked, tensors))
    return requests


def test_eight_clients_lose_nothing_and_get_the_librarys_frames(
    infer: Callable[..., Any], call: Callable[..., Any], demo_bundle: Path
) -> None:
    asked, tensors = zip(*fifty_requests(), strict=True)
    expected = call("library", str(demo_bundle), list(asked))
    answers = infer(list(tensors), 8)
    assert len(answers) == 50
    for events, (frames, seeds, _) in zip(answers, expected, strict=True):
        *progress, last = events
        assert [(int(event["step"][0]), int(event["steps"][0])) for event in progress] == [(0, 2), (1, 2)]
        assert last["frames"].dtype == np.uint8
        np.testing.assert_array_equal(last["frames"], frames)
        assert tuple(last["seeds"]) == seeds
    # Different requests have different frames, or the comparison would prove little.
    assert len({events[-1]["frames"].tobytes() for events in answers}) == 50
    assert {float(events[-1]["frame_rate"][0]) for events in answers} == {24.5, 25.0}


def cogvideox_requests() -> dict[str, list[tuple[dict[str, Any], Tensors]]]:
    """By model, as parameters of `generate` and as tensors: from text, from a video, from an image."""
    video, image = pixels(1, 9, 48, 80), pixels(2, 40, 70)
    prompts = ["a red ball rolls to the left", "snow"]
    batch = {"prompt": prompts, "seed": [3, 4], "num_frames": 17, "use_dynamic_cfg": True}
    batch_tensors = {"prompt": text(*prompts), "seed": ints(3, 4), "num_frames": ints(17)}
    changed = {"prompt": "snow", "negative_prompt": "white", "video": video, "strength": 0.5, "seed": 5}
    changed_tensors = {"prompt": text("snow"), "negative_prompt": text("white"), "strength": floats(0.5)}
    begun = {"prompt": "snow", "image": image, "num_frames": 9, "seed": 6, "guidance_scale": 3.0}
    begun_tensors = {"prompt": text("snow"), "image": image[np.newaxis], "num_frames": ints(9), "seed": ints(6)}
    made: dict[str, list[tuple[dict[str, Any], Tensors]]] = {
        "cogvideox": [
            (batch, batch_tensors | {"use_dynamic_cfg": np.array([True])}),
            (changed, changed_tensors | {"video": video, "seed": ints(5)}),
        ],
        # Its learned positions are of one size.
        "cogvideox-image": [({"height": 64, "width": 96} | begun, begun_tensors | {"guidance_scale": floats(3.0)})],
    }
    common = {"height": 48, "width": 80, "num_inference_steps": 2}
    return {
        name: [
            (common | asked, {key: ints((common | asked)[key]) for key in common} | tensors)
            for asked, tensors in requests
        ]
        for name, requests in made.items()
    }


def test_cogvideox_from_text_video_and_image(
    call: Callable[..., Any], server: Any, cogvideox: Callable[..., tuple[Path, Path]]
) -> None:
    """Nothing of the service is of one family. A rate that nobody asked for is the model's own."""
    for name, requests in cogvideox_requests().items():
        asked, tensors = zip(*requests, strict=True)
        expected = call("library", str(cogvideox(COGVIDEOX[name])[1]), list(asked))
        for events, (frames, seeds, _) in zip(call("infer", server.url, name, list(tensors), 2), expected, strict=True):
            *progress, last = events
            assert len(progress) == int(progress[0]["steps"][0])
            assert frames.std() > 255 * 0.05
            np.testing.assert_array_equal(last["frames"], frames)
            assert (tuple(last["seeds"]), float(last["frame_rate"][0])) == (seeds, 8.0)
    ((error,),) = call("infer", server.url, "cogvideox", [PROMPT | {"stg_scale": floats(1.0)}], 1)
    assert error.startswith("stg_scale for a cogvideox model; expected no such parameter")


def test_ltx2_with_its_sound(
    call: Callable[..., Any], server: Any, ltx2: Callable[..., tuple[Path, Path, Path]]
) -> None:
    """From texts, with all kinds of guidance, and from an image; frames and sound are the library's."""
    image = pixels(2, 40, 70)
    common = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2, "max_sequence_length": 32}
    common_tensors = {name: ints(value) for name, value in common.items()}
    prompts, scales = ["a red ball", "snow"], {"modality_scale": 2.0, "audio_guidance_scale": 4.0}
    asked: list[dict[str, Any]] = [
        {"prompt": prompts, "seed": [3, 4], "spatio_temporal_guidance_blocks": [1], **scales},
        {"prompt": "snow", "image": image, "image_crf": 0, "seed": 5, "stg_scale": 0.0, "audio_stg_scale": 0.0},
    ]
    tensors: list[Tensors] = [
        {"prompt": text(*prompts), "seed": ints(3, 4), "spatio_temporal_guidance_blocks": ints(1)}
        | {name: floats(value) for name, value in scales.items()},
        {"prompt": text("snow"), "image": image[np.newaxis], "image_crf": ints(0), "seed": ints(5)}
        | {"stg_scale": floats(0.0), "audio_stg_scale": floats(0.0)},
    ]
    expected = call("library", str(ltx2("2.3")[2]), [common | each for each in asked])
    answers = call("infer", server.url, "ltx2", [common_tensors | each for each in tensors], 2)
    for events, (frames, seeds, audio) in zip(answers, expected, strict=True):
        *progress, last = events
        assert not isinstance(last, str), last
        assert len(progress) == 2
        assert set(last) == {"frames", "audio", "sample_rate", "seeds", "frame_rate"}
        np.testing.assert_array_equal(last["frames"], frames)
        np.testing.assert_array_equal(last["audio"], audio)
        assert frames.std() > 255 * 0.05
        assert audio.std() > 0.01
        assert (tuple(last["seeds"]), float(last["frame_rate"][0])) == (seeds, 24.0)
    latent = common_tensors | tensors[1] | {"output_type": text("latent")}
    ((*_, made),) = call("infer", server.url, "ltx2", [latent], 1)
    assert set(made) == {"latents", "latents_shape", "audio_latents", "seeds", "frame_rate"}
    assert made["audio_latents"].shape[::2] == (1, 9)  # of 9 frames at 24 a second


def test_progress_comes_in_order_with_descending_sigmas(infer: Callable[..., Any]) -> None:
    ((*progress, last),) = infer([PROMPT | {"num_inference_steps": ints(7)}])
    assert [int(event["step"][0]) for event in progress] == list(range(7))
    assert all(set(event) == {"step", "steps", "sigma"} for event in progress)
    sigmas = [float(event["sigma"][0]) for event in progress]
    assert sigmas[0] == 1.0
    assert sigmas == sorted(sigmas, reverse=True)
    assert set(last) == {"frames", "seeds", "frame_rate"}


def test_latents_go_out_and_in_again(infer: Callable[..., Any]) -> None:
    ((*_, made),) = infer([PROMPT | {"output_type": text("latent"), "pipeline": text("LTXConditionPipeline")}])
    assert set(made) == {"latents", "latents_shape", "seeds", "frame_rate"}
    batch, _, frames, height, width = made["latents_shape"]
    assert (batch, frames, height, width) == (1, 2, 2, 2)
    again = {name: made[name] for name in ("latents", "latents_shape")} | {"denoise_strength": floats(0.5)}
    ((*_, changed),) = infer([PROMPT | again | {"pipeline": text("LTXConditionPipeline")}])
    assert changed["frames"].shape == (1, 9, 64, 64, 3)


MALFORMED: dict[str, tuple[Tensors, str]] = {
    "no prompt": ({"height": ints(64)}, "neither given; expected one of prompt and prompt_embeds"),
    "off the grid": (PROMPT | {"height": ints(500)}, "height is 500; expected a positive multiple of 32"),
    "no frames": (PROMPT | {"num_frames": ints(0)}, "num_frames is 0; expected"),
    "no steps": (PROMPT | {"num_inference_steps": ints(0)}, "num_inference_steps is 0; expected a whole number"),
    "rescale": (PROMPT | {"guidance_rescale": floats(2.0)}, "guidance_rescale is 2.0; expected a number from 0 to 1"),
    "steps in a list": (PROMPT | {"guidance_scale": floats(3, 2, 1)}, "guidance_scale has 3 values; expected 2"),
    "rate": (PROMPT | {"frame_rate": floats(-1)}, "frame_rate is -1.0; expected above 0"),
    "seeds": (PROMPT | {"seed": ints(1, 2, 3)}, "3 seeds; expected one, or 1"),
    "not UTF-8": (PROMPT | {"prompt": np.array([b"\xff\xfe"], object)}, "prompt is not UTF-8"),
    "not JSON": (PROMPT | {"stg_blocks": text("[1")}, "stg_blocks is '[1', which is not JSON"),
    "no blocks": (PROMPT | {"stg_blocks": as_json({"a": 1})}, "stg_blocks is {'a': 1}; expected a list"),
    "stg mode": (PROMPT | {"stg_mode": text("residual")}, "stg_mode is 'residual'; expected one of"),
    "no frames for it": (PROMPT | {"conditions": as_json([{"image": 0}])}, "conditions alone; expected conditions and"),
    "beyond": (
        PROMPT | {"conditions": as_json([{"image": 5}]), "condition_frames": pixels(0, 2, 64, 64)},
        "a condition stands at 5 of condition_frames; expected a whole number from 0 to 1",
    ),
    "path": (
        PROMPT | {"conditions": as_json([{"image": "/etc/passwd"}]), "condition_frames": pixels(0, 1, 64, 64)},
        "a condition stands at '/etc/passwd' of condition_frames",
    ),
    "strength": (
        PROMPT | {"conditions": as_json([{"image": 0, "strength": 2}]), "condition_frames": pixels(0, 1, 64, 64)},
        "a condition's strength is 2; expected a number from 0 to 1",
    ),
    "latents alone": (PROMPT | {"latents": np.zeros(8, np.float32)}, "latents alone; expected latents and"),
    "latents' shape": (
        PROMPT | {"latents": np.zeros(8, np.float32), "latents_shape": ints(1, 3, 3)},
        "latents_shape is [1, 3, 3] for 8 latents",
    ),
    "second stage": (PROMPT | {"second_stage": as_json({"speed": 1})}, "second_stage has speed; expected a dict"),
    "floats": (PROMPT | {"output_type": text("np")}, "output_type is 'np'; expected uint8 or latent"),
    "pipeline": (PROMPT | {"pipeline": text("LTXOther")}, "pipeline LTXOther (asked for); expected one of"),
    "preset": (PROMPT | {"preset": text("best")}, "preset 'best'; expected one of"),
    "tiling": (PROMPT | {"tiling": text("some")}, "tiling is 'some'; expected one of"),
    "memory": (PROMPT | {"memory_limit": text("lots")}, "memory_limit is 'lots'; expected bytes"),
    "embeddings": (SMALL_TENSORS | {"prompt_embeds": np.zeros((1, 4, 8), np.float32)}, "prompt_embeds without"),
}  # fmt: skip
REFUSED_BY_TRITON: tuple[Tensors, ...] = (
    PROMPT | {"height": ints(64, 64)},
    PROMPT | {"width": floats(64)},
    PROMPT | {"callback": ints(1)},
    PROMPT | {"image": np.zeros((1, 8, 8, 4), np.uint8)},
)


def test_malformed_requests_get_our_message_and_the_server_goes_on(infer: Callable[..., Any], server: Any) -> None:
    assert len(MALFORMED) >= 20
    answers = infer([tensors for tensors, _ in MALFORMED.values()], 4)
    for (name, (_, message)), events in zip(MALFORMED.items(), answers, strict=True):
        (error,) = events
        assert isinstance(error, str), name
        assert error.startswith(message), name
        assert re.search(r"; expected .+\. .+\.$", error), name  # what was got, what was expected, what to do
    assert all(isinstance(events[-1], str) for events in infer(list(REFUSED_BY_TRITON)))
    ((*_, last),) = infer([PROMPT])
    assert last["frames"].shape == (1, 9, 64, 64, 3)
    assert server.process.poll() is None


def test_http_streams_events_and_tells_whose_fault_it_was(server: Any, infer: Callable[..., Any]) -> None:
    def ask(**asked: Any) -> list[dict[str, Any]]:
        url = f"{server.http}/v2/models/{MODEL}/generate_stream"
        body = json.dumps({"prompt": "a red ball rolls to the left", "seed": 3, **SMALL, **asked}).encode()
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
            return [json.loads(line[len(b"data: ") :]) for line in response if line.startswith(b"data: ")]

    *progress, last = ask()
    assert [(event["step"], event["steps"]) for event in progress] == [(0, 2), (1, 2)]
    ((*_, streamed),) = infer([PROMPT | {"seed": ints(3)}])
    assert last["frames"] == streamed["frames"].ravel().tolist()
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(height=65)
    assert caught.value.code == 400  # Triton's INVALID_ARG
    assert json.loads(caught.value.read()[len(b"data: ") :])["error"].startswith("height is 65; expected")


def test_a_client_that_leaves_frees_its_pipeline(
    infer: Callable[..., Any], call: Callable[..., Any], server: Any
) -> None:
    """Each pipeline in turn is given work without an end; the other goes on, and both are free when the client left."""
    for after in (1, 3):
        events, others = call("infer_and_cancel", server.url, MODEL, ENDLESS, after, [PROMPT] * 2)
        assert [int(event["step"][0]) for event in events] == list(range(after))
        assert [len(each) for each in others] == [3, 3]  # beside it, so two requests run at a time
    answers = infer([PROMPT] * 4, 4)
    assert [len(events) for events in answers] == [3] * 4


def test_the_model_is_unloaded_and_loaded_and_the_server_stops(
    call: Callable[..., Any], triton_environment: Any, repository: Path, tmp_path: Path
) -> None:
    options = ("--model-control-mode=explicit", f"--load-model={MODEL}")
    with triton_environment.serve(repository, tmp_path, *options) as running:
        (events,) = call("infer", running.url, MODEL, [PROMPT], 1)
        assert "frames" in events[-1]
        call("control", running.url, "unload_model", MODEL)
        deadline = time.monotonic() + 30
        while stub_processes(running) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not stub_processes(running), "the process with the weights lives on"
        assert call("control", running.url, "is_model_ready", MODEL) is False
        call("control", running.url, "load_model", MODEL)
        (events,) = call("infer", running.url, MODEL, [PROMPT], 1)
        assert "frames" in events[-1]
        assert stub_processes(running)
        assert running.stop() == 0
        assert not stub_processes(running)
        log = running.log.read_text()
    assert log.count(f"successfully unloaded '{MODEL}'") == 2
    assert "Traceback" not in log


def stub_processes(server: Any) -> list[str]:
    """The Python backend's processes below a server."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == server.process.pid and fields[0] != "Z":
            found.append(status.parent.name)
    return found
