"""The exported transformer of LTX-2, fed as the runtime feeds it, against diffusers' forward with its own flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from telecine.backends.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeSession
from telecine.errors import SourceError
from telecine.families.ltx2.guidance import Scales, StepGuidance
from telecine.families.ltx2.host import parse_rope
from telecine.families.ltx2.modalities import AudioVideo, Told
from telecine.families.ltx2.positions import rope_inputs
from telecine.families.ltx2.transformer import BoundTransformer, timestep_inputs
from telecine.shapes import LatentShape
from telecine_export.checkpoints.joined import Joined
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2 import transformer
from telecine_export.families.ltx2.transformer import check_transformer, rope
from telecine_export.fused_qkv import fuse_qkv
from telecine_export.source import open_source
from telecine_export.timesteps import TorchTimesteps

Exported = Callable[..., Any]
# One call of the network: float32 sums in another order.
TOLERANCE = 1e-5
# No size is a traced one; the text's length neither.
LATENT, AUDIO, LENGTH, BATCH, FRAME_RATE = LatentShape(frames=3, height=2, width=5), 11, 13, 2, 25.0
EVERY_PASS = StepGuidance(
    video=Scales(guidance=3.0, stg=1.0, modality=2.0), audio=Scales(guidance=7.0), stg_blocks=(0,)
)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ModuleSession:
    """The module that is traced, with the inputs and outputs of its graph."""

    def __init__(self, source: Path, *, fuse: bool) -> None:
        opened = open_source(str(source))
        spec = fuse_qkv(transformer.spec(opened)) if fuse else transformer.spec(opened)
        with torch.device("meta"):
            self._module = spec.build(torch.float32)
        with Joined(opened.checkpoint("transformer")) as weights:
            names = [name for name, _ in self._module.named_parameters()]
            self._module.load_state_dict({name: weights.load(spec.rename(name)) for name in names}, assign=True)
        for each in self._module.modules():
            if isinstance(each, TorchTimesteps):
                each.frequencies = each.computed[0]
        self.inputs, self._outputs, self._bound = spec.sample, list(spec.outputs), dict[str, np.ndarray]()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def bind(self, name: str, buffer: np.ndarray) -> None:
        self._bound[name] = buffer

    def unbind(self) -> None:
        self._bound.clear()

    def enqueue(self) -> None:
        with torch.no_grad():
            made = self._module(**{name: torch.from_numpy(self._bound[name]) for name in self.inputs})
        for name, values in zip(self._outputs, made, strict=True):
            self._bound[name][:] = values.numpy()


class Case:
    """One transformer behind both: telecine's graph, or the module that it is traced from, and diffusers' own."""

    def __init__(self, session: Any, source: Path) -> None:
        self.session = session
        self.model: Any = LTX2VideoTransformer3DModel.from_pretrained(source / "transformer").eval()
        self.config = self.model.config
        self.rope = rope_inputs(parse_rope(rope(self.config)), LATENT, AUDIO, FRAME_RATE)
        random = np.random.default_rng(0)
        self.latents = AudioVideo(
            random.standard_normal((BATCH, LATENT.tokens, self.config.in_channels), dtype=np.float32),
            random.standard_normal((BATCH, AUDIO, self.config.audio_in_channels), dtype=np.float32),
        )
        widths = [self.session.inputs[f"{side}encoder_hidden_states"].shape[-1] for side in ("", "audio_")]
        self.texts: dict[Any, AudioVideo] = {
            side: AudioVideo(*(random.standard_normal((BATCH, LENGTH, each), dtype=np.float32) for each in widths))
            for side in ("positive", "negative")
        }

    def told(self, *, held: int) -> Told:
        """Timesteps of a video whose first `held` tokens are less noisy than the rest; none has one for all."""
        each = np.full(LATENT.tokens if held else 1, 731.5, np.float32)
        each[:held] = np.linspace(0, 300, held)
        return Told(
            timesteps=each, timestep=np.float32(731.5), audio_timestep=np.float32(402.25),
            sigma=np.float32(1), audio_sigma=np.float32(1),
        )  # fmt: skip

    def ours(self, told: Told, guided: StepGuidance, *, use_cross_timestep: bool) -> AudioVideo:
        """(passes * B, ...) clean latents; of shares of noise of 1, as far from the latents as velocities are."""
        with BoundTransformer(
            self.session, self.texts, self.rope, self.latents, self.config.num_layers,
            use_cross_timestep=use_cross_timestep, stage=lambda name: nullcontext(),
        ) as network:  # fmt: skip
            return network(self.latents, told, guided)

    def theirs(self, told: Told, guided: StepGuidance, *, use_cross_timestep: bool) -> AudioVideo:
        """The same with diffusers' flags."""
        predicted = []
        for each in guided.passes:
            text = self.texts["negative" if each == "negative" else "positive"]
            sigma, audio_sigma = (torch.full((BATCH,), float(t)) for t in (told.timestep, told.audio_timestep))
            timestep = torch.from_numpy(np.repeat(told.timesteps[np.newaxis], BATCH, axis=0))
            with torch.no_grad():
                velocities = self.model(
                    hidden_states=torch.from_numpy(self.latents.video),
                    audio_hidden_states=torch.from_numpy(self.latents.audio),
                    encoder_hidden_states=torch.from_numpy(text.video),
                    audio_encoder_hidden_states=torch.from_numpy(text.audio),
                    timestep=timestep, audio_timestep=audio_sigma, sigma=sigma, audio_sigma=audio_sigma,
                    encoder_attention_mask=torch.ones(BATCH, LENGTH),
                    audio_encoder_attention_mask=torch.ones(BATCH, LENGTH),
                    num_frames=LATENT.frames, height=LATENT.height, width=LATENT.width, fps=FRAME_RATE,
                    audio_num_frames=AUDIO,
                    isolate_modalities=each == "isolated",
                    spatio_temporal_guidance_blocks=list(guided.stg_blocks) if each == "perturbed" else None,
                    use_cross_timestep=use_cross_timestep,
                    return_dict=False,
                )  # fmt: skip
            predicted.append([x - v.numpy() for x, v in zip(self.latents, velocities, strict=True)])
        return AudioVideo(*(np.concatenate(each) for each in zip(*predicted, strict=True)))


@pytest.fixture(
    scope="module",
    params=["2.3", pytest.param("2.0", marks=pytest.mark.slow), pytest.param("interleaved", marks=pytest.mark.slow)],
)
def case(request: pytest.FixtureRequest, ltx2_transformer: Exported) -> Iterator[Case]:
    exported = ltx2_transformer(request.param)
    with OnnxRuntimeSession.load(exported.graph, exported.path, device="cpu", options=OnnxRuntimeOptions()) as session:
        yield Case(session, exported.source)


@pytest.mark.parametrize("use_cross_timestep", [True, False])
@pytest.mark.parametrize("held", [0, 10], ids=["one timestep", "a timestep a token"])
def test_what_the_runtime_binds_gives_diffusers_velocities(case: Case, held: int, use_cross_timestep: bool) -> None:
    assert_diffusers_velocities(case, held, use_cross_timestep)


@pytest.mark.parametrize("fuse", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("style", ["2.0", "2.3", "interleaved"])
def test_so_does_the_module_that_is_traced(
    style: str, fuse: bool, ltx2_transformer_source: Callable[[str], Path]
) -> None:
    """Every style without the time that a trace takes, and with joined projections (`--fuse-qkv`)."""
    source = ltx2_transformer_source(style)
    case = Case(ModuleSession(source, fuse=fuse), source)
    joined = [name for name, _ in case.session._module.named_modules() if name.endswith(("to_qkv", "to_kv"))]
    assert len(joined) == (6 * case.config.num_layers if fuse else 0)
    for held, use_cross_timestep in ((0, False), (10, True)):
        assert_diffusers_velocities(case, held, use_cross_timestep)


def assert_diffusers_velocities(case: Case, held: int, use_cross_timestep: bool) -> None:
    told = case.told(held=held)
    got, expected = (run(told, EVERY_PASS, use_cross_timestep=use_cross_timestep) for run in (case.ours, case.theirs))
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.std() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    _, positive, perturbed, isolated = np.split(expected.video, len(EVERY_PASS.passes))
    assert np.abs(positive - isolated).max() > 100 * TOLERANCE
    if case.config.perturbed_attn:
        assert np.abs(positive - perturbed).max() > 100 * TOLERANCE


def feeds(case: Case, rows: int, *, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs of one call, other in every row."""
    random = np.random.default_rng(seed)
    told = case.told(held=4)
    made: dict[str, Any] = dict(case.rope) | timestep_inputs(told, rows, use_cross_timestep=False)
    sizes: dict[Any, int] = {"batch": rows, "tokens": LATENT.tokens, "audio_tokens": AUDIO, "text_length": LENGTH}
    for name, spec in case.session.inputs.items():
        if name.endswith("hidden_states"):
            shape = [sizes.get(size, size) for size in spec.shape]
            made[name] = random.standard_normal(shape, dtype=np.float32)
    made["perturbation_mask"] = (random.random((case.config.num_layers, rows)) > 0.5).astype(np.float32)
    made["modality_mask"] = (np.arange(rows) % 3 > 0).astype(np.float32)
    return {name: array for name, array in made.items() if name in case.session.inputs}


def test_masks_are_of_rows(case: Case) -> None:
    """A call of several passes gives each row what a call of its own does."""
    rows = 4
    together = feeds(case, rows)
    got = case.session.run(together)
    shared_axes = {name for name in together if "rope" in name}
    for row in range(rows):
        alone = {
            name: array if name in shared_axes
            else array[:, row : row + 1] if name == "perturbation_mask" else array[row : row + 1]
            for name, array in together.items()
        }  # fmt: skip
        for name, expected in case.session.run(alone).items():
            np.testing.assert_allclose(got[name][row : row + 1], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("tokens", "audio_tokens", "length"), [(1, 1, 1), (1, 2, 40)], ids=str)
def test_the_smallest_sizes_run(case: Case, tokens: int, audio_tokens: int, length: int) -> None:
    sizes: dict[Any, int] = {
        "batch": 1, "tokens": tokens, "audio_tokens": audio_tokens, "text_length": length, "rope_positions": 1,
        "timestep_tokens": 1, "cross_timestep_tokens": 1,
    }  # fmt: skip
    made = case.session.run(
        {
            name: np.zeros([sizes.get(size, size) for size in spec.shape], spec.dtype)
            for name, spec in case.session.inputs.items()
        }
    )
    assert {name: array.shape[:2] for name, array in made.items()} == {
        "velocity": (1, tokens), "audio_velocity": (1, audio_tokens)
    }  # fmt: skip
    assert all(np.isfinite(array).all() for array in made.values())


def test_attention_is_one_operator_each(ltx2_transformer: Exported) -> None:
    """Six of a block, of heads that TensorRT has kernels for; what ONNX Runtime's CPU provider runs is its own."""
    exported = ltx2_transformer("2.3")
    files = {"Attention": exported.path, "MultiHeadAttention": exported.path.parent / "main.onnxruntime-cpu.onnx"}
    for operator, path in files.items():
        model = onnx.load(str(path), load_external_data=False)
        found = [node.op_type for node in model.graph.node]
        assert found.count(operator) == 6 * 2
        assert "Softmax" not in found


def test_a_graph_has_what_its_model_reads(ltx2_transformer: Exported) -> None:
    newer = {spec.name for spec in ltx2_transformer("2.3").graph.inputs}
    older = complete(LTX2VideoTransformer3DModel, {})
    assert newer - transformer.graph(older).sample.keys() == {"sigma", "audio_sigma", "perturbation_mask"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size_t": 2}, "patch_size_t 2"),
        ({"audio_patch_size": 2}, "audio_patch_size 2"),
        ({"rope_type": "other"}, "rope_type other"),
        ({"audio_cross_attention_dim": 1024}, "audio_cross_attention_dim 1024 and sound of width 2048"),
        (
            {"rope_type": "split", "audio_attention_head_dim": 63, "audio_cross_attention_dim": 2016},
            "pairs of channels",
        ),
    ],
    ids=str,
)
def test_what_no_graph_covers_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        check_transformer(Path("transformer"), complete(LTX2VideoTransformer3DModel, change))


def test_published_configurations_are_covered() -> None:
    for change in ({}, {"rope_type": "split"}):
        check_transformer(Path("transformer"), complete(LTX2VideoTransformer3DModel, change))


def test_fp8_takes_every_product_of_the_blocks_but_the_gates(ltx2_transformer: Exported) -> None:
    exported = ltx2_transformer("2.3", "fp8")
    model = onnx.load(str(exported.path), load_external_data=False)
    stored = {each.name for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT8E4M3FN}
    with open_source(str(exported.source)).checkpoint("transformer") as weights:
        products = {
            name for name in weights.names()
            if name.startswith("transformer_blocks.") and name.endswith(".weight") and len(weights.shape(name)) == 2
        }  # fmt: skip
    assert stored == {name for name in products if "to_gate_logits" not in name}


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.01), ("fp8", 0.2)])
def test_lower_precisions_stay_near(precision: str, bound: float, ltx2_transformer: Exported) -> None:
    """In deviations of float32's velocities, on average; bf16 has no kernels on a CPU.

    fp8 has one scale here for all activations, and E4M3 keeps 3 bits; a network of 2 blocks averages little of it out.
    """
    made = []
    for each in ("fp32", precision):
        exported = ltx2_transformer("2.3", each)
        options = OnnxRuntimeOptions()
        with OnnxRuntimeSession.load(
            exported.graph, exported.path, device="cpu", options=options, precision=each
        ) as session:
            made.append(session.run(_spread_feeds(session)))
    for name, exact in made[0].items():
        error = np.abs(made[1][name] - exact).mean() / exact.std()
        assert 1e-6 < error < bound, f"{name}: {error:.2g}"


def _spread_feeds(session: OnnxRuntimeSession) -> dict[str, np.ndarray]:
    """Normal inputs; positions of random angles, masks that shut nothing."""
    random = np.random.default_rng(0)
    sizes: dict[Any, int] = {
        "batch": 1, "tokens": 30, "audio_tokens": 11, "text_length": 16, "rope_positions": 5, "timestep_tokens": 1,
        "cross_timestep_tokens": 1,
    }  # fmt: skip
    made: dict[str, np.ndarray] = {}
    for name, spec in session.inputs.items():
        shape = [sizes.get(size, size) for size in spec.shape]
        if name == "rope_index":
            made[name] = random.integers(0, 5, shape, np.int32)
        elif "rope" in name:
            angles = np.random.default_rng(1).random(shape, np.float32) * 6
            made[name] = np.cos(angles) if name.endswith("cos") else np.sin(angles)
        elif name.endswith("mask"):
            made[name] = np.ones(shape, np.float32)
        else:
            made[name] = random.standard_normal(shape, dtype=np.float32) * (500 if "time" in name else 1)
    return made
