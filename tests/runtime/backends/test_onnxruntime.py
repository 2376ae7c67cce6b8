"""The session contract on ONNX Runtime, with the real graphs of a tiny model."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.backends.onnxruntime.library import translated
from telecine.backends.onnxruntime.providers import CPU
from telecine.bundle import Bundle
from telecine.dtypes import to_float32
from telecine.errors import BackendError
from telecine.initializers import read_initializers
from telecine.manifest import FileEntry, Graph, TensorSpec

pytest.importorskip("onnxruntime")

Load = Callable[..., OnnxRuntimeSession]


@pytest.fixture
def load(tiny_bundle: Path) -> Load:
    """`load("transformer")`: a session; options as `OnnxRuntimeOptions` has them."""
    bundle = Bundle.open(tiny_bundle)

    def get(component: str = "text_encoder", *, device: str = "cpu", **options: Any) -> OnnxRuntimeSession:
        graph = bundle.graph(component)
        settings = OnnxRuntimeOptions(**options)
        return OnnxRuntimeSession.load(graph, bundle.path(graph.file), device=device, options=settings)

    return get


def ids(batch: int = 1, length: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, (batch, length))


def transformer_feeds(tokens: int = 6, batch: int = 1, length: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "hidden_states": rng.standard_normal((batch, tokens, 16), dtype=np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, length, 32), dtype=np.float32),
        "encoder_attention_mask": np.ones((batch, length), np.float32),
        "timestep": np.full((batch, 1), 500, np.float32),
        "rope_cos": np.ones((3, tokens, 10), np.float32),
        "rope_sin": np.zeros((3, tokens, 10), np.float32),
        "rope_index": np.zeros((tokens, 3), np.int32),
        "stg_mode": np.zeros((2, batch), np.int32),
    }


@pytest.mark.parametrize("component", ["text_encoder", "transformer", "vae_encoder", "vae_decoder"])
def test_every_graph_has_the_manifests_inputs_and_outputs(load: Load, component: str) -> None:
    with load(component) as session:
        real = session._network.loaded.session
        for specs, nodes in ((session.inputs, real.get_inputs()), (session.outputs, real.get_outputs())):
            assert list(specs) == [node.name for node in nodes]
            for node in nodes:
                assert (
                    node.type
                    == {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}[
                        specs[node.name].dtype
                    ]
                )


@pytest.mark.parametrize(("batch", "length"), [(1, 8), (3, 17), (2, 1)])
def test_run_gives_what_output_shapes_says(load: Load, batch: int, length: int) -> None:
    with load() as session:
        outputs = session.run({"input_ids": ids(batch, length)})
        shapes = session.output_shapes({"input_ids": (batch, length)})
        assert (
            {name: array.shape for name, array in outputs.items()} == shapes == {"prompt_embeds": (batch, length, 32)}
        )
        assert outputs["prompt_embeds"].dtype == np.float32
        assert np.isfinite(outputs["prompt_embeds"]).all()


def test_fixed_and_scaled_axes_reach_the_outputs(load: Load) -> None:
    with load("vae_decoder") as session:
        shapes = session.output_shapes({"latents": (2, 16, 3, 2, 4), "timestep": (2,)})
        assert shapes == {"video": (2, 3, 17, 64, 128)}


@pytest.mark.parametrize(
    ("feeds", "problem"),
    [
        ({}, r"inputs \[\]; expected exactly \['input_ids'\]"),
        ({"ids": ids()}, r"inputs \['ids'\]"),
        ({"input_ids": ids(), "mask": ids()}, r"inputs \['input_ids', 'mask'\]"),
        ({"input_ids": ids()[0]}, r"input_ids has shape \(8,\); expected \(batch, text_length\)"),
        ({"input_ids": ids()[:0]}, r"input_ids has shape \(0, 8\)"),
        ({"input_ids": ids().astype(np.int32)}, "input_ids is int32; expected a contiguous NumPy array of int64"),
        ({"input_ids": ids().astype(np.float32)}, "input_ids is float32"),
        ({"input_ids": ids().astype(">i8")}, "input_ids is >i8"),
        ({"input_ids": [["a"]]}, "input_ids is <U1"),
    ],
)
def test_run_refuses_other_inputs(load: Load, feeds: dict[str, Any], problem: str) -> None:
    with load() as session, pytest.raises(BackendError, match=problem):
        session.run(feeds)


def test_run_takes_lists_and_views(load: Load) -> None:
    with load() as session:
        expected = session.run({"input_ids": ids()})["prompt_embeds"]
        np.testing.assert_array_equal(session.run({"input_ids": ids().tolist()})["prompt_embeds"], expected)
        view = np.repeat(ids(), 2, axis=1)[:, ::2]
        np.testing.assert_array_equal(session.run({"input_ids": view})["prompt_embeds"], expected)


def test_a_fault_inside_the_graph_is_a_backend_error(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    with load() as session:
        with pytest.raises(BackendError, match=r"ONNX Runtime failed running: .*out of data bounds.* telecine doctor"):
            session.run({"input_ids": np.full((1, 8), 10**6)})
        assert np.isfinite(session.run({"input_ids": ids()})["prompt_embeds"]).all()
    assert capfd.readouterr() == ("", "")  # said once, by the exception


def test_bound_buffers_are_used_again(load: Load) -> None:
    with load("transformer") as session:
        feeds = transformer_feeds()
        velocity = np.empty(feeds["hidden_states"].shape, np.float32)
        for name, array in (feeds | {"velocity": velocity}).items():
            session.bind(name, array)
        results = []
        for timestep in (900.0, 100.0, 900.0):
            feeds["timestep"].fill(timestep)
            session.enqueue()
            results.append(velocity.copy())
        np.testing.assert_array_equal(results[0], results[2])
        assert not np.array_equal(results[0], results[1])
        feeds["timestep"].fill(100)
        np.testing.assert_array_equal(session.run(feeds)["velocity"], results[1])


def test_another_size_is_another_binding(load: Load) -> None:
    with load() as session:
        for length in (8, 16, 4):
            out = np.empty((1, length, 32), np.float32)
            session.bind("input_ids", ids(length=length))
            session.bind("prompt_embeds", out)
            session.enqueue()
            np.testing.assert_array_equal(out, session.clone().run({"input_ids": ids(length=length)})["prompt_embeds"])


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("name", "buffer", "problem"),
    [
        ("ids", ids(), "no input or output is called ids; expected one of input_ids, prompt_embeds"),
        ("input_ids", ids().tolist(), "input_ids is list; expected a contiguous NumPy array of int64"),
        ("input_ids", ids().astype(np.int32), "input_ids is int32"),
        ("input_ids", ids(2, 8).T, "input_ids is not contiguous"),
        ("input_ids", ids(1, 8)[:, ::2], "input_ids is not contiguous"),
        ("input_ids", np.zeros(65, np.uint8)[1:].view(np.int64)[None], "input_ids is not contiguous and aligned"),
        ("prompt_embeds", np.empty((1, 8, 32), np.float64), "prompt_embeds is float64"),
        ("prompt_embeds", read_only(np.empty((1, 8, 32), np.float32)), "prompt_embeds is read-only"),
    ],
)
def test_bind_refuses_other_buffers(load: Load, name: str, buffer: Any, problem: str) -> None:
    with load() as session, pytest.raises(BackendError, match=problem):
        session.bind(name, buffer)


def test_read_only_inputs_are_fine(load: Load) -> None:
    with load() as session:
        session.run({"input_ids": read_only(ids())})


def test_enqueue_wants_everything_bound(load: Load) -> None:
    with load() as session:
        with pytest.raises(BackendError, match="input_ids, prompt_embeds not bound; expected a buffer for every"):
            session.enqueue()
        session.bind("input_ids", ids())
        with pytest.raises(BackendError, match="prompt_embeds not bound"):
            session.enqueue()
        session.run({"input_ids": ids()})
        with pytest.raises(BackendError, match="input_ids, prompt_embeds not bound"):
            session.enqueue()  # run leaves nothing bound


@pytest.mark.parametrize("shape", [(1, 9, 32), (1, 7, 32), (2, 8, 32), (8, 32), (1, 8, 31), (256,)])
def test_enqueue_refuses_an_output_of_another_shape(load: Load, shape: tuple[int, ...]) -> None:
    with load() as session:
        session.bind("input_ids", ids())
        session.bind("prompt_embeds", np.empty(shape, np.float32))
        with pytest.raises(BackendError, match=r"prompt_embeds has shape .*; expected \(1, 8, 32\), for the inputs"):
            session.enqueue()
        session.bind("prompt_embeds", np.empty((1, 8, 32), np.float32))
        session.enqueue()


def test_enqueue_refuses_inputs_that_contradict_each_other(load: Load) -> None:
    with load("transformer") as session:
        for name, array in (transformer_feeds() | {"velocity": np.empty((1, 6, 16), np.float32)}).items():
            session.bind(name, array)
        session.bind("rope_index", np.zeros((5, 3), np.int32))
        with pytest.raises(
            BackendError, match=r"rope_index has shape \(5, 3\); expected \(tokens, 3\) where .*'tokens': 6"
        ):
            session.enqueue()


def test_bound_arrays_live_as_long_as_they_are_bound(load: Load) -> None:
    session = load()
    expected = session.run({"input_ids": ids()})["prompt_embeds"]
    source, out = ids(), np.empty_like(expected)
    watched, watched_out = weakref.ref(source), weakref.ref(out)
    session.bind("input_ids", source)
    session.bind("prompt_embeds", out)
    del source
    gc.collect()
    garbage = [np.full((1, 8), 299) for _ in range(1000)]  # would land where a freed array was
    session.enqueue()
    np.testing.assert_array_equal(out, expected)
    del out, garbage
    assert watched() is not None
    session.bind("input_ids", ids(seed=1))
    gc.collect()
    assert watched() is None  # replaced
    assert watched_out() is not None
    session.unbind()
    gc.collect()
    assert watched_out() is None
    session.close()


def test_run_keeps_nothing(load: Load) -> None:
    with load() as session:
        feeds = {"input_ids": ids()}
        results = session.run(feeds)
        watched = [weakref.ref(feeds.pop("input_ids")), weakref.ref(results.pop("prompt_embeds"))]
        gc.collect()
        assert [ref() for ref in watched] == [None, None]


def test_clones_have_bindings_of_their_own(load: Load) -> None:
    first = load()
    second = first.clone()
    assert second._network is first._network  # the weights
    outs = [np.empty((1, 8, 32), np.float32) for _ in range(2)]
    for session, out, seed in zip((first, second), outs, (0, 1), strict=True):
        session.bind("input_ids", ids(seed=seed))
        session.bind("prompt_embeds", out)
    first.enqueue()
    second.enqueue()
    first.close()
    for out, seed in zip(outs, (0, 1), strict=True):
        np.testing.assert_array_equal(out, second.run({"input_ids": ids(seed=seed)})["prompt_embeds"])


def test_clones_run_in_threads(load: Load) -> None:
    with load("transformer") as session:
        feeds = [transformer_feeds(tokens) for tokens in (6, 10)]
        expected = [session.run(feed)["velocity"] for feed in feeds]
        wrong: list[int] = []

        def work(number: int) -> None:
            clone = session.clone()
            wrong.extend(
                number for _ in range(20) if not np.array_equal(clone.run(feeds[number])["velocity"], expected[number])
            )

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_a_closed_session_says_so(load: Load) -> None:
    session = load()
    assert not session.closed
    with session:
        session.bind("input_ids", ids())
    assert session.closed
    uses: list[Callable[[], object]] = [
        lambda: session.run({"input_ids": ids()}),
        lambda: session.bind("input_ids", ids()),
        session.enqueue,
        session.clone,
    ]
    for use in uses:
        with pytest.raises(BackendError, match="this session is closed"):
            use()
    session.unbind()
    session.close()


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 1},
        {"threads": 2},
        {"memory_arena": False},
        {"memory_pattern": False},
        {"providers": ("CPUExecutionProvider",)},
        {"providers": ()},
    ],
)
def test_options_do_not_change_the_result(load: Load, options: dict[str, Any]) -> None:
    with load("transformer") as plain, load("transformer", **options) as session:
        expected, got = (each.run(transformer_feeds())["velocity"] for each in (plain, session))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_options_reach_onnxruntime(load: Load) -> None:
    with load(threads=1, memory_arena=False, memory_pattern=False) as session:
        settings = session._network.loaded.session.get_session_options()
        assert settings.intra_op_num_threads == 1
        assert not settings.enable_cpu_mem_arena
        assert not settings.enable_mem_pattern
    with load() as session:
        settings = session._network.loaded.session.get_session_options()
        assert settings.enable_cpu_mem_arena
        assert settings.enable_mem_pattern


@pytest.mark.parametrize("threads", [0, -1, 1.0, "2", True, 10**12])
def test_threads_are_a_sane_number(threads: Any) -> None:
    with pytest.raises(BackendError, match=f"threads is {threads!r}; expected a whole number from 1 to 1024"):
        OnnxRuntimeOptions(threads=threads)


def test_one_provider_is_not_a_string() -> None:
    with pytest.raises(BackendError, match="expected a tuple of names"):
        OnnxRuntimeOptions(providers="CPUExecutionProvider")  # type: ignore[arg-type]


def test_an_unknown_provider_lists_the_known_ones(load: Load) -> None:
    with pytest.raises(BackendError, match="execution provider FastProvider; expected one of .*CPUExecutionProvider"):
        load(providers=("FastProvider", "CPUExecutionProvider"))


def without_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


@pytest.mark.skipif(not without_cuda(), reason="this ONNX Runtime has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_its_provider_names_the_package(load: Load, device: str) -> None:
    with pytest.raises(
        BackendError, match=rf'device {device} with .*CPUExecution.*pip install "telecine\[onnxruntime-gpu\]"'
    ):
        load(device=device)


class FakeOnnxRuntime(SimpleNamespace):
    """An `onnxruntime` whose sessions have these providers, and copy an input when it is bound, as elsewhere."""

    def __init__(self, providers: list[str]) -> None:
        self.bound: dict[str, np.ndarray] = {}
        self.ran_on: list[dict[str, np.ndarray]] = []
        binding = SimpleNamespace(
            bind_cpu_input=lambda name, array: self.bound.update({name: array.copy()}),
            bind_output=lambda *_: None,
        )
        made = SimpleNamespace(
            get_providers=lambda: providers,
            io_binding=lambda: binding,
            run_with_iobinding=lambda _: self.ran_on.append(dict(self.bound)),
        )
        super().__init__(
            SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda *_: None),
            InferenceSession=lambda path, settings, providers, **options: made,
            get_available_providers=lambda: [OTHER, CPU],
        )


OTHER = "OpenVINOExecutionProvider"


def test_a_provider_that_is_left_out_is_an_error(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime([CPU]))
    with pytest.raises(BackendError, match=rf"runs main.onnx on CPUExecutionProvider; expected {OTHER}, as asked"):
        load(providers=(OTHER, CPU))


def test_another_device_gets_what_the_buffers_hold_now(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOnnxRuntime([OTHER, CPU])
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    session = load(providers=(OTHER, CPU))
    assert session.batch_pays
    buffer = ids()
    session.bind("input_ids", buffer)
    session.bind("prompt_embeds", np.empty((1, 8, 32), np.float32))
    for value in (1, 2):
        buffer.fill(value)
        session.enqueue()
        assert (fake.ran_on[-1]["input_ids"] == value).all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gpu_mem_limit": 1 << 30}, "options of gpu_mem_limit on CPUExecutionProvider; expected options that act"),
        ({"use_tf32": True, "cudnn_conv_algo_search": "EXHAUSTIVE"}, "cudnn_conv_algo_search, use_tf32 on CPU"),
        ({"provider_options": {OTHER: {"a": 1}}}, f"options of {OTHER} on CPUExecutionProvider"),
        ({"gpu_mem_limit": 0}, "gpu_mem_limit is 0; expected bytes"),
        ({"cudnn_conv_algo_search": "FAST"}, "cudnn_conv_algo_search is 'FAST'; expected one of HEURISTIC"),
        ({"provider_options": {CPU: {"device_id": 1}}}, "provider_options sets device_id; expected options that tele"),
    ],
)
def test_options_that_would_not_act_are_refused(load: Load, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(BackendError, match=problem):
        load(**options)


def test_a_missing_onnxruntime_names_the_extra(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r'cannot be imported.*pip install "telecine\[onnxruntime\]"'):
        load()


@pytest.mark.parametrize("damage", ["empty", "cut", "missing", "no weights", "cut weights"])
def test_a_damaged_graph_is_a_backend_error(tiny_bundle: Path, tmp_path: Path, damage: str) -> None:
    """The bundle's own checks come first: this is what is left if a file changes after them."""
    graph = Bundle.open(tiny_bundle).graph("text_encoder")
    folder = Path(shutil.copytree(tiny_bundle / "text_encoder", tmp_path / "text_encoder"))
    path, weights = folder / "main.onnx", folder / "weights.bin"
    if damage in ("empty", "cut"):
        os.truncate(path, 0 if damage == "empty" else 1000)
    elif damage == "cut weights":
        os.truncate(weights, 1000)
    else:
        (path if damage == "missing" else weights).unlink()
    with pytest.raises(BackendError, match=r"ONNX Runtime failed loading .*main.onnx: .*telecine inspect --check"):
        OnnxRuntimeSession.load(graph, path, device="cpu", options=OnnxRuntimeOptions())


def test_a_graph_that_is_not_the_manifests_is_a_backend_error(load: Load, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    graph = dataclasses.replace(bundle.graph("vae_decoder"), file=bundle.graph("text_encoder").file)
    session = OnnxRuntimeSession.load(graph, bundle.path(graph.file), device="cpu", options=OnnxRuntimeOptions())
    with pytest.raises(BackendError, match="ONNX Runtime failed binding latents"):
        session.run({"latents": np.zeros((1, 16, 1, 1, 1), np.float32), "timestep": np.zeros(1, np.float32)})


@pytest.mark.parametrize(
    "text",
    [
        "Failed to allocate memory for requested buffer of size 42",
        "std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_out_of_memory_is_told_from_other_faults(text: str) -> None:
    with (
        pytest.raises(BackendError, match="out of memory: .*fewer frames, a smaller size"),
        translated("running"),
    ):
        raise RuntimeError(f"Non-zero status code\n{text}\n")
    with pytest.raises(BackendError, match="out of memory"), translated("running"):
        raise MemoryError


# Run by itself: a limit on the address space cannot be taken back.
STARVED = """
import resource, sys
import numpy as np
from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.errors import BackendError

bundle = Bundle.open(sys.argv[1])
graph = bundle.graph("vae_decoder")
options = OnnxRuntimeOptions(threads=1, memory_arena=sys.argv[2] == "arena")
session = OnnxRuntimeSession.load(graph, bundle.path(graph.file), device="cpu", options=options)

def decode(frames, side):
    latents = np.zeros((1, 16, frames, side, side), np.float32)
    return session.run({"latents": latents, "timestep": np.zeros(1, np.float32)})

decode(1, 2)
size = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + (160 << 20),) * 2)
for frames, side in ((4, 16), (8, 16)):  # inside ONNX Runtime; its output buffer, in NumPy
    try:
        decode(frames, side)
    except BackendError as error:
        where = "in NumPy" if isinstance(error.__cause__, MemoryError) else "in the backend"
        print(str(error).partition(":")[0], where)
    else:
        print("no error")
decode(1, 2)
print("and again")
"""


@pytest.mark.parametrize("arena", ["arena", "no arena"])
def test_running_out_of_memory_is_an_error_that_leaves_nothing(tiny_bundle: Path, arena: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tiny_bundle), arena], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines() == [
        "out of memory in the backend",
        "out of memory in NumPy",
        "and again",
    ], done.stderr
    assert done.stderr == ""


class TestReplace:
    """Other weights for a session, and for its clones."""

    @pytest.fixture
    def weights(self, tiny_bundle: Path) -> dict[str, np.ndarray]:
        """Every weight of the transformer, but for noise what it is."""
        rng = np.random.default_rng(3)
        found = read_initializers(tiny_bundle / "transformer" / "main.onnx")
        return {
            name: (each.read() + 0.1 * rng.standard_normal(each.shape)).astype(np.float32)
            for name, each in found.items()
            if each.inline is None
        }

    @staticmethod
    def velocity(session: OnnxRuntimeSession) -> np.ndarray:
        return session.run(transformer_feeds())["velocity"]

    def test_all_weights_are_those_of_a_file_with_them(
        self, load: Load, weights: dict[str, np.ndarray], tiny_bundle: Path, tmp_path: Path
    ) -> None:
        """What ONNX Runtime folds at load is folded from the new values too."""
        bundle = Bundle.open(tiny_bundle)
        folder = Path(shutil.copytree(tiny_bundle / "transformer", tmp_path / "transformer"))
        with (folder / "weights.bin").open("r+b") as file:
            for name, each in read_initializers(folder / "main.onnx").items():
                if each.inline is None:
                    file.seek(each.offset)
                    file.write(weights[name].tobytes())
        graph, options = bundle.graph("transformer"), OnnxRuntimeOptions()
        with (
            OnnxRuntimeSession.load(graph, folder / "main.onnx", device="cpu", options=options) as written,
            load("transformer") as session,
        ):
            base = self.velocity(session)
            session.replace(weights)
            np.testing.assert_array_equal(self.velocity(session), self.velocity(written))
            assert np.abs(self.velocity(session) - base).max() > 0.1
            session.replace({})
            np.testing.assert_array_equal(self.velocity(session), base)

    def test_the_others_are_the_bundle_s_again(self, load: Load, weights: dict[str, np.ndarray]) -> None:
        one, other = ({name: weights[name]} for name in ("proj_in.weight", "proj_out.weight"))
        with load("transformer") as session, load("transformer") as fresh:
            session.replace(one)
            session.replace(other)
            fresh.replace(other)
            np.testing.assert_array_equal(self.velocity(session), self.velocity(fresh))

    def test_arrays_live_as_long_as_the_session(self, load: Load, weights: dict[str, np.ndarray]) -> None:
        with load("transformer") as session:
            session.replace(weights)
            expected = self.velocity(session)
            watched = [weakref.ref(array) for array in weights.values()]
            weights.clear()
            gc.collect()
            assert all(ref() is not None for ref in watched)
            np.testing.assert_array_equal(self.velocity(session), expected)
            session.replace({})
            gc.collect()
            assert not any(ref() is not None for ref in watched)

    def test_clones_have_them_from_their_next_call(self, load: Load, weights: dict[str, np.ndarray]) -> None:
        feeds = transformer_feeds()
        out = np.empty(feeds["hidden_states"].shape, np.float32)
        with load("transformer") as first, first.clone() as second:
            for name, array in (feeds | {"velocity": out}).items():
                second.bind(name, array)
            second.enqueue()
            base = out.copy()
            first.replace(weights)
            np.testing.assert_array_equal(out, base)
            second.enqueue()  # on the buffers that were bound before
            np.testing.assert_array_equal(out, self.velocity(first))
            assert np.abs(out - base).max() > 0.1
            with second.clone() as third:
                np.testing.assert_array_equal(self.velocity(third), out)
            first.close()
            second.enqueue()

    @pytest.mark.parametrize(
        ("name", "change", "problem"),
        [
            ("nope", lambda array: array, "nope: no weight of the graph is called so"),
            ("proj_in.weight", lambda array: array.T, r"proj_in.weight: float32 of shape \(64, 16\); expected float32"),
            ("proj_in.weight", lambda array: array.astype(np.float16), "proj_in.weight: float16 of shape"),
            ("proj_in.weight", lambda array: array.view(np.uint32), "proj_in.weight: uint32 of shape"),
        ],
    )
    def test_what_does_not_fit_changes_nothing(
        self, name: str, change: Callable[[np.ndarray], np.ndarray], problem: str, load: Load,
        weights: dict[str, np.ndarray],
    ) -> None:  # fmt: skip
        with load("transformer") as session:
            session.replace({"proj_out.weight": weights["proj_out.weight"]})
            before = self.velocity(session)
            with pytest.raises(BackendError, match=problem):
                session.replace({"proj_out.bias": weights["proj_out.bias"], name: change(weights["proj_in.weight"])})
            np.testing.assert_array_equal(self.velocity(session), before)

    def test_a_failing_load_changes_nothing(
        self, load: Load, weights: dict[str, np.ndarray], tiny_bundle: Path
    ) -> None:
        with load("transformer") as session:
            before = self.velocity(session)
            loaded = session._network
            loaded.path = tiny_bundle / "transformer" / "weights.bin"
            with pytest.raises(BackendError, match="ONNX Runtime failed loading"):
                loaded.loaded = loaded._load(weights)
            np.testing.assert_array_equal(self.velocity(session), before)

    def test_a_closed_session(self, load: Load) -> None:
        session = load("transformer")
        session.close()
        with pytest.raises(BackendError, match="this session is closed"):
            session.replace({})


@pytest.mark.parametrize(("dtype", "held"), [("bfloat16", np.uint16), ("float8e4m3fn", np.uint8), ("float16", None)])
def test_types_that_numpy_lacks_are_replaced_by_their_bits(dtype: str, held: Any, tmp_path: Path) -> None:
    """A graph that casts its one weight to float32: what ONNX Runtime reads from the bits."""
    import onnx
    from onnx import TensorProto, helper

    kind = getattr(TensorProto, dtype.upper())
    codes = np.arange(64, 100, dtype=held or np.float16).reshape(4, 9)
    weight = TensorProto(name="w", dims=codes.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", 0), ("length", codes.nbytes)):
        weight.external_data.add(key=key, value=str(value))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 9]) for name in ("x", "y"))
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "c"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, tmp_path / "main.onnx")
    (tmp_path / "weights.bin").write_bytes(codes.tobytes())
    specs = [TensorSpec(name=name, dtype="float32", shape=("rows", 9)) for name in ("x", "y")]
    entry = FileEntry(path="main.onnx", size=0, sha256="")
    graph = Graph(file=entry, inputs=(specs[0],), outputs=(specs[1],))
    options, zeros = OnnxRuntimeOptions(), {"x": np.zeros((4, 9), np.float32)}
    with OnnxRuntimeSession.load(graph, tmp_path / "main.onnx", device="cpu", options=options) as session:
        for values in (codes, codes[::-1] + codes.dtype.type(1)):
            session.replace({"w": values})
            np.testing.assert_array_equal(session.run(zeros)["y"], to_float32(values, dtype))
