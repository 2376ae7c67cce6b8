"""Other weights in an engine, and its own again: through the double, against a graph that has them inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda_runtime import CudaDouble
from doubles.tensorrt_engine import Refitter

from telecine.backends.cuda.array import DeviceArray
from telecine.backends.cuda.device import Device
from telecine.backends.tensorrt.session import TensorRtSession
from telecine.bundle import Bundle
from telecine.errors import BackendError, EngineError
from telecine.initializers import read_initializers

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

Open = Callable[..., TensorRtSession]


def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 300, (1, 8))


def run(session: TensorRtSession) -> np.ndarray:
    return session.run({"input_ids": ids()})["prompt_embeds"]


@pytest.fixture
def weights(bundle: Bundle) -> dict[str, np.ndarray]:
    """Other values for some of the text encoder's weights."""
    found = read_initializers(bundle.path(bundle.graph("text_encoder").file))
    large = [each for each in found.values() if len(each.shape) == 2][:3]
    rng = np.random.default_rng(1)
    return {each.name: rng.standard_normal(each.shape).astype(np.float32) * 0.1 for each in large}


def inside(bundle: Bundle, weights: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    """What the graph gives that has these weights as its own."""
    model = onnx.load(bundle.path(bundle.graph("text_encoder").file))
    for each in model.graph.initializer:
        if each.name in weights:
            each.raw_data = weights[each.name].tobytes()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids()})[0]


@pytest.mark.parametrize(
    ("library", "version"), [("tensorrt", "10.9.0.34"), ("tensorrt", "11.4.0.106"), ("tensorrt_rtx", "1.7.1.116")]
)
def test_there_and_back(
    open_session: Open, bundle: Bundle, weights: dict[str, np.ndarray], tmp_path: Path, library: str, version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = list(weights)
    first, second = ({name: weights[name] for name in some} for some in (names[:2], names[1:]))
    second = {name: array + 1 for name, array in second.items()}
    with open_session(refit=True, library=library, version=version) as session:
        own = run(session)
        results = []
        for each in (first, second, first):
            session.replace(each)
            results.append(run(session))
            np.testing.assert_array_equal(results[-1], inside(bundle, each, tmp_path))
        np.testing.assert_array_equal(results[0], results[2])
        assert not np.array_equal(results[0], results[1])
        session.replace({})
        np.testing.assert_array_equal(run(session), own)


def test_clones_have_them_too(open_session: Open, weights: dict[str, np.ndarray]) -> None:
    with open_session(refit=True) as session, session.clone() as clone:
        session.replace(weights)
        np.testing.assert_array_equal(run(clone), run(session))


def test_pending_work_is_waited_for(open_session: Open, weights: dict[str, np.ndarray], gpu: CudaDouble) -> None:
    with open_session(refit=True) as session:
        device, stream = Device.open("cuda"), session.stream
        with (
            DeviceArray(device, (1, 8), np.int64, stream=stream) as tokens,
            DeviceArray(device, (1, 8, 32), np.float32, stream=stream) as out,
        ):
            tokens.upload(ids())
            own = run(session)
            session.bind("input_ids", tokens)
            session.bind("prompt_embeds", out)
            session.enqueue()
            assert not gpu.idle()
            session.replace(weights)  # the double's refit_cuda_engine refuses pending work
            np.testing.assert_array_equal(out.download(), own)
            session.unbind()


def test_a_plan_without_refit(open_session: Open, weights: dict[str, np.ndarray]) -> None:
    with open_session() as session:
        with pytest.raises(EngineError, match="built without refit; .*telecine build BUNDLE --refit"):
            session.replace(weights)
        run(session)


@pytest.mark.parametrize("wrong", ["name", "shape", "dtype"])
def test_weights_of_another_model(open_session: Open, weights: dict[str, np.ndarray], wrong: str) -> None:
    name = next(iter(weights))
    other = {
        "name": ({"no.such.weight": weights[name]}, "no.such.weight: no weight of the graph is called so"),
        "shape": ({name: weights[name][:-1]}, f"{name}: float32 of shape .*expected float32 of shape"),
        "dtype": ({name: weights[name].astype(np.float16)}, f"{name}: float16"),
    }[wrong]
    with open_session(refit=True) as session:
        own = run(session)
        with pytest.raises(BackendError, match=other[1]):
            session.replace(weights | other[0])
        np.testing.assert_array_equal(run(session), own)


def test_what_tensorrt_refuses_changes_nothing(
    open_session: Open, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(refit=True) as session:
        own = run(session)
        with monkeypatch.context() as patch:
            patch.setattr(Refitter, "set_named_weights", lambda self, name, weights: self._engine.fail("not these"))
            with pytest.raises(BackendError, match="TensorRT refuses .*: not these"):
                session.replace(weights)
        with monkeypatch.context() as patch:
            patch.setattr(Refitter, "get_all_weights", lambda self: [])
            with pytest.raises(BackendError, match="the engine has no weights called"):
                session.replace(weights)
        np.testing.assert_array_equal(run(session), own)


def test_nothing_runs_on_a_mixture(
    open_session: Open, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """refit_cuda_engine: "If False is returned, a subset of weights may have been refitted"."""
    with open_session(refit=True) as session:
        own = run(session)
        name, array = next(iter(weights.items()))

        def half(self: Any) -> bool:
            self._engine.network.give({name: array.tobytes()})
            return self._engine.fail("in the middle")

        with monkeypatch.context() as patch:
            patch.setattr(Refitter, "refit_cuda_engine", half)
            with pytest.raises(BackendError, match="TensorRT refuses the new weights: in the middle"):
                session.replace(weights)
        with pytest.raises(BackendError, match="a mixture of weights"):
            run(session)
        session.replace({})
        np.testing.assert_array_equal(run(session), own)


def test_a_stripped_plan_gets_the_bundles_weights(open_session: Open) -> None:
    with open_session() as plain, open_session(refit=True, stripped=True, key="stripped") as session:
        np.testing.assert_array_equal(run(session), run(plain))
