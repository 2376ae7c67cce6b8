"""Spatio-temporal guidance, CFG-star and settings that change from step to step, against torch, over whole runs.

diffusers' LTXPipeline has none of them, so the reference is that pipeline without guidance around a transformer that
guides itself: each call of it makes the step's predictions one by one with diffusers' modules, perturbed by their
attention processors, and combines them by the papers' formulas. Whatever telecine does with batches, rows and buffers,
the reference does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import telecine.guidance
from telecine.families import text as text_module
from telecine.families.bound import BoundTransformer
from telecine.guidance import StepGuidance

MODES = ["attention_values", "attention_skip", "transformer_block"]
BLOCKS = [[0], [1], [0, 1]]  # the tiny checkpoint has two
ONE: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "negative_prompt": "worst quality, blurry",
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 3,
    "seed": 0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}
# Unequal everywhere: texts of other lengths, so that a row of the wrong prompt or mask shows.
TWO = ONE | {
    "prompt": ["a red ball rolls to the left", "The old sailor walks through the quiet forest"],
    "negative_prompt": ["worst quality, blurry", "jittery"],
    "seed": [3, 8],
}
STG = {"stg_scale": 1.5, "stg_blocks": [1]}
# Every set of passes follows every other kind of change: more rows, fewer, as many of other prompts.
CHANGING: dict[str, Any] = {
    "num_inference_steps": 8,
    "guidance_scale": [1.0, 3.0, 1.0, 3.0, 5.0, 1.0, 3.0, 1.0],
    "guidance_rescale": [0.0, 0.7, 0.7, 0.0, 0.5, 0.0, 0.7, 1.0],
    "stg_scale": [0.0, 0.0, 1.0, 0.0, 1.5, 2.0, 0.5, 0.0],
    "stg_blocks": [[], [0], [1], [], [0], [0, 1], [1], [0]],
    "cfg_star": True,
}
# A fault must exceed the contract this many times: caught by a margin, not by luck.
MARGIN = 5


@contextmanager
def perturbed(model: Any, blocks: Sequence[int], mode: str) -> Iterator[None]:
    """diffusers' transformer with these blocks perturbed for all that it is given (arXiv 2411.18664)."""
    with pytest.MonkeyPatch.context() as patch:
        for block in (model.transformer_blocks[index] for index in blocks):
            original = block.attn1.processor

            def identity_map(attn: Any, x: torch.Tensor, *rest: Any, attend: Any = original) -> torch.Tensor:
                """Attention as it is, under a map that is the identity: every token sees itself alone."""
                alone = torch.full((x.shape[1], x.shape[1]), -torch.inf).fill_diagonal_(0).expand(len(x), -1, -1)
                return attend(attn, x, None, alone, rest[-1])

            def no_attention(attn: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
                return attn.to_out[0](x)

            if mode == "transformer_block":
                patch.setattr(block, "forward", lambda hidden_states, **_: hidden_states)
            else:
                wrong = {"attention_values": identity_map, "attention_skip": no_attention}[mode]
                patch.setattr(block.attn1, "processor", wrong)
        yield


def combined(
    u: torch.Tensor | None, c: torch.Tensor, p: torch.Tensor | None, w: float, s: float, phi: float, star: bool
) -> torch.Tensor:
    """One video's (T, C) predictions → what the step follows, in float64."""
    guided = c = c.double()
    if u is not None:
        u = u.double()
        if star:  # Fan et al. 2025: the multiple of u that is nearest to c
            u = u * (c * u).sum() / (u * u).sum()
        guided = u + w * (c - u)  # Ho and Salimans 2022
    if p is not None:
        guided = guided + s * (c - p.double())  # Hyung et al. 2024
    if u is not None or p is not None:  # Lin et al. 2023
        guided = phi * (guided * c.std() / guided.std()) + (1 - phi) * guided
    return guided.float()


class GuidingTransformer:
    """The forward of diffusers' transformer, one call a step, with guidance inside."""

    def __init__(self, pipeline: Any, settings: dict[str, Any], negative: list[str]) -> None:
        self.model, self.plain, self.settings = pipeline.transformer, pipeline.transformer.forward, settings
        self.negative = pipeline.encode_prompt(negative, do_classifier_free_guidance=False, max_sequence_length=128)
        self.steps = itertools.count()

    def setting(self, name: str, step: int, default: Any) -> Any:
        value = self.settings.get(name, default)
        by_step = isinstance(value, list) and (name != "stg_blocks" or isinstance(value[0], list))
        return value[step] if by_step else value

    def __call__(
        self, hidden_states: Any, encoder_hidden_states: Any, encoder_attention_mask: Any, timestep: Any, **rest: Any
    ) -> tuple[torch.Tensor]:
        step = next(self.steps)
        w, s = self.setting("guidance_scale", step, 3.0), self.setting("stg_scale", step, 0.0)
        phi, star = self.setting("guidance_rescale", step, 0.0), self.settings.get("cfg_star", False)
        blocks, mode = self.setting("stg_blocks", step, ()), self.settings.get("stg_mode", "attention_values")

        def predict(video: slice, text: Any, mask: Any) -> torch.Tensor:
            return self.plain(
                hidden_states=hidden_states[video], encoder_hidden_states=text[video],
                encoder_attention_mask=mask[video], timestep=timestep[video], **rest,
            )[0][0]  # fmt: skip

        guided = []
        for video in (slice(index, index + 1) for index in range(len(hidden_states))):
            c = predict(video, encoder_hidden_states, encoder_attention_mask)
            u = predict(video, *self.negative[:2]) if w > 1 else None
            p = None
            if s > 0:
                with perturbed(self.model, blocks, mode):
                    p = predict(video, encoder_hidden_states, encoder_attention_mask)
            guided.append(combined(u, c, p, w, s, phi, star))
        return (torch.stack(guided),)


GUIDANCE = {
    "guidance_scale", "guidance_rescale", "guidance_sigmas", "cfg_star", "stg_scale", "stg_mode", "stg_blocks",
}  # fmt: skip


def run_reference(pair: Any, **request: Any) -> np.ndarray:
    """The request on diffusers, guided as above; `guidance_sigmas` must have been spread over the steps."""
    settings = {name: value for name, value in request.items() if name in GUIDANCE}
    plain = {name: value for name, value in request.items() if name not in GUIDANCE | {"negative_prompt"}}
    negative = request["negative_prompt"]
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        guiding = GuidingTransformer(pair.theirs, settings, [negative] if isinstance(negative, str) else negative)
        patch.setattr(pair.theirs.transformer, "forward", guiding)
        return pair.run_theirs(**plain, guidance_scale=1.0)


def assert_same(pair: Any, **request: Any) -> None:
    pair.assert_close(pair.run_ours(**request), run_reference(pair, **request))


def cases(table: dict[str, dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("change", table.values(), ids=table.keys())


def test_the_reference_is_diffusers_own_guidance_where_that_has_it(pair: Any) -> None:
    request = TWO | {"guidance_scale": 5.0, "guidance_rescale": 0.7}
    pair.assert_close(run_reference(pair, **request), pair.run_theirs(**request))


@pytest.mark.parametrize("blocks", BLOCKS, ids=lambda blocks: "+".join(map(str, blocks)))
@pytest.mark.parametrize("mode", MODES)
def test_modes_and_blocks(pair: Any, mode: str, blocks: list[int]) -> None:
    assert_same(pair, **TWO, stg_scale=1.5, stg_mode=mode, stg_blocks=blocks)


@cases(
    {
        "one": {},
        "without-cfg": {"guidance_scale": 1.0},
        "rescaled": {"guidance_rescale": 0.7},
        "rescaled-fully": {"guidance_rescale": 1.0},
        "rescaled-without-cfg": {"guidance_scale": 1.0, "guidance_rescale": 0.7},
        "cfg-star": {"cfg_star": True},
        "cfg-star-rescaled": {"cfg_star": True, "guidance_scale": 6.0, "guidance_rescale": 0.5, "stg_scale": 4.0},
    }
)
@pytest.mark.parametrize("request_", [ONE, TWO], ids=["one", "two"])
def test_combinations(pair: Any, request_: dict[str, Any], change: dict[str, Any]) -> None:
    assert_same(pair, **request_ | STG | change)


@cases({"plain": {}, "rescaled": {"guidance_rescale": 0.7}, "8": {"guidance_scale": 8.0}})
def test_cfg_star_alone(pair: Any, change: dict[str, Any]) -> None:
    assert_same(pair, **TWO | {"cfg_star": True} | change)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("request_", [ONE, TWO], ids=["one", "two"])
def test_settings_that_change_from_step_to_step(pair: Any, request_: dict[str, Any], mode: str) -> None:
    assert_same(pair, **request_ | CHANGING, stg_mode=mode)


def test_several_videos_of_a_prompt(pair: Any) -> None:
    # Of one length within either side: diffusers repeats masks in another order than embeddings.
    settings = {"decode_timestep": [0.05] * 2, "decode_noise_scale": [0.025] * 2, "num_videos_per_prompt": 2}
    request = ONE | STG | settings
    theirs = run_reference(pair, **request | {"negative_prompt": [ONE["negative_prompt"]] * 2})
    pair.assert_close(pair.run_ours(**request), theirs)


def test_values_by_ranges_of_sigmas(pair: Any) -> None:
    request = TWO | {"num_inference_steps": 6, "cfg_star": True}
    sigmas: list[float] = []
    pair.run_ours(**request, callback=lambda step, steps, sigma, latents: sigmas.append(sigma))
    ends = [1.0, sigmas[2], (sigmas[3] + sigmas[4]) / 2]
    ranges = [0, 1, 1, 2, 2, 2]  # by hand: the last takes what is below every end
    lists = {
        "guidance_scale": [1.0, 6.0, 3.0],
        "guidance_rescale": [0.0, 0.5, 0.7],
        "stg_scale": [0.0, 4.0, 1.0],
        "stg_blocks": [[], [0, 1], [1]],
    }
    spread = {name: [values[index] for index in ranges] for name, values in lists.items()}
    ours = pair.run_ours(**request | lists, guidance_sigmas=ends)
    pair.assert_close(ours, run_reference(pair, **request | spread))
    np.testing.assert_array_equal(ours, pair.run_ours(**request | spread))


@cases(
    {
        "scale-0": {"stg_scale": 0.0, "stg_blocks": [0, 1], "stg_mode": "transformer_block"},
        "scales-of-0": {"stg_scale": [0.0] * 3, "stg_blocks": [[1], [], [0]]},
        "lists": {"guidance_scale": [5.0] * 3, "guidance_rescale": [0.7] * 3, "cfg_star": False},
        "by-sigmas": {"guidance_scale": [5.0], "guidance_sigmas": [0.5]},
    }
)
def test_off_is_the_plain_run_bit_for_bit(pair: Any, change: dict[str, Any]) -> None:
    plain = TWO | {"guidance_scale": 5.0, "guidance_rescale": 0.7}
    np.testing.assert_array_equal(pair.run_ours(**plain | change), pair.run_ours(**plain))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the transformer has."""
    seen: list[int] = []
    call = BoundTransformer.__call__

    def counted(*arguments: Any) -> np.ndarray:
        velocities = call(*arguments)
        seen.append(len(velocities))
        return velocities

    monkeypatch.setattr(BoundTransformer, "__call__", counted)
    return seen


def test_a_step_pays_for_the_passes_that_it_needs(pair: Any, rows: list[int]) -> None:
    pair.run_ours(**TWO | CHANGING)
    assert rows == [2 * passes for passes in (1, 2, 2, 2, 3, 2, 3, 1)]


def test_off_costs_nothing(pair: Any, rows: list[int]) -> None:
    pair.run_ours(**ONE | STG | {"stg_scale": 0.0})
    pair.run_ours(**ONE | STG | {"stg_scale": 0.0, "guidance_scale": 1.0})
    assert rows == [2, 2, 2, 1, 1, 1]


@cases(
    {
        "both": {"guidance_scale": 3.0},
        "without-cfg": {"guidance_scale": 1.0},
        "cfg-in-one-step": {"guidance_scale": [1.0, 3.0, 1.0]},
    }
)
def test_each_prompt_is_encoded_once_and_only_where_a_step_needs_it(
    pair: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    encoded: list[Any] = []
    encode = text_module._encode

    def counted(models: Any, tokens: Any) -> Any:
        encoded.append(tokens)
        return encode(models, tokens)

    monkeypatch.setattr(text_module, "_encode", counted)
    pair.run_ours(**TWO | STG | change)
    assert len(encoded) == (1 if change["guidance_scale"] == 1.0 else 2)


# Faults that must not pass: each is put into telecine and the comparison is the tests' own.

Patch = Callable[[Any, str, Any], None]
Mutant = Callable[[Patch], None]
MUTANTS: dict[str, Mutant] = {}
GUIDED = TWO | CHANGING | {"num_inference_steps": 5} | {
    name: CHANGING[name][:5] for name in ("guidance_scale", "guidance_rescale", "stg_scale", "stg_blocks")
}  # fmt: skip


def mutant(name: str) -> Callable[[Mutant], Mutant]:
    def register(function: Mutant) -> Mutant:
        MUTANTS[name] = function
        return function

    return register


def patch_modes(patch: Patch, wrong: Callable[[np.ndarray, StepGuidance, int], np.ndarray]) -> None:
    """Put `wrong(modes, step, batch)` in place of the (blocks, passes * B) modes."""
    right = StepGuidance.stg_modes
    patch(StepGuidance, "stg_modes", lambda self, blocks, batch: wrong(right(self, blocks, batch), self, batch))


@mutant("the wrong block")
def _(patch: Patch) -> None:
    patch_modes(patch, lambda modes, step, batch: modes[::-1])


@mutant("another mode")
def _(patch: Patch) -> None:
    patch(telecine.guidance, "STG_MODES", {"attention_values": 2})


@mutant("no block perturbed")
def _(patch: Patch) -> None:
    patch_modes(patch, lambda modes, step, batch: np.zeros_like(modes))


@mutant("every pass perturbed")
def _(patch: Patch) -> None:
    patch_modes(patch, lambda modes, step, batch: np.broadcast_to(modes.max(axis=1, keepdims=True), modes.shape))


@mutant("rows of the perturbed pass taken for one video's")
def _(patch: Patch) -> None:
    # As the original code has it: every `passes`-th row, which is the perturbed pass only for a batch of 1.
    def wrong(modes: np.ndarray, step: StepGuidance, batch: int) -> np.ndarray:
        moved = np.zeros_like(modes)
        moved[:, len(step.passes) - 1 :: len(step.passes)] = modes.max(axis=1, keepdims=True)
        return moved

    patch_modes(patch, wrong)


@mutant("blocks of the first perturbed step for all")
def _(patch: Patch) -> None:
    kept: list[np.ndarray] = []

    def wrong(modes: np.ndarray, step: StepGuidance, batch: int) -> np.ndarray:
        if not modes.any():
            return modes
        kept.append(modes.max(axis=1, keepdims=True))
        return np.where(modes.max(axis=0) > 0, kept[0], 0)

    patch_modes(patch, wrong)


@mutant("perturbed pass with the negative text")
def _(patch: Patch) -> None:
    patch(text_module, "SIDES", text_module.SIDES | {"perturbed": "negative_prompt"})  # type: ignore[operator]


@mutant("text bound again only for another number of passes")
def _(patch: Patch) -> None:
    right = BoundTransformer.__call__

    def wrong(self: BoundTransformer, latents: np.ndarray, timestep: float, guided: StepGuidance) -> np.ndarray:
        if len(guided.passes) == len(self._bound_passes):
            self._bound_passes = guided.passes
        return right(self, latents, timestep, guided)

    patch(BoundTransformer, "__call__", wrong)


def patch_stg(patch: Patch, wrong: Callable[..., np.ndarray]) -> None:
    """Put `wrong(right, guided, cond, perturbed, scale)` in place of the term of spatio-temporal guidance."""
    right = telecine.guidance.spatio_temporal
    patch(telecine.guidance, "spatio_temporal", lambda *arguments, out: wrong(right, *arguments))


@mutant("sign of the term")
def _(patch: Patch) -> None:
    patch_stg(patch, lambda right, guided, cond, perturbed, scale: right(guided, cond, perturbed, -scale))


@mutant("term left out")
def _(patch: Patch) -> None:
    patch_stg(patch, lambda right, guided, cond, perturbed, scale: guided)


@mutant("term from the guided prediction")
def _(patch: Patch) -> None:
    patch_stg(patch, lambda right, guided, cond, perturbed, scale: right(guided, guided, perturbed, scale))


@mutant("scale less 1, as in x0 space")
def _(patch: Patch) -> None:
    patch_stg(patch, lambda right, guided, cond, perturbed, scale: right(guided, cond, perturbed, scale - 1))


@mutant("rescaled before the term")
def _(patch: Patch) -> None:
    rescale = telecine.guidance.rescale

    def term_after(right: Any, guided: np.ndarray, cond: np.ndarray, perturbed: np.ndarray, scale: float) -> np.ndarray:
        return right(rescale(guided, cond, 0.5), cond, perturbed, scale)

    patch_stg(patch, term_after)
    patch(telecine.guidance, "rescale", lambda guided, cond, phi, out: guided)


@mutant("a rescaling of 1 for none, as in the original code")
def _(patch: Patch) -> None:
    rescale = telecine.guidance.rescale
    patch(telecine.guidance, "rescale", lambda guided, cond, phi, out: rescale(guided, cond, 1 - phi))


@mutant("CFG-star's product over the whole batch")
def _(patch: Patch) -> None:
    right = telecine.guidance.project
    whole = (1, -1)
    patch(
        telecine.guidance,
        "project",
        lambda uncond, cond, out: right(uncond.reshape(whole), cond.reshape(whole)).reshape(uncond.shape),
    )


@mutant("CFG-star left out")
def _(patch: Patch) -> None:
    patch(telecine.guidance, "project", lambda uncond, cond, out: uncond)


@mutant("CFG-star of the positive prediction")
def _(patch: Patch) -> None:
    right = telecine.guidance.project
    patch(telecine.guidance, "project", lambda uncond, cond, out: right(cond, uncond))


@mutant("settings a step late")
def _(patch: Patch) -> None:
    patch(telecine.guidance.Guidance, "at", lambda self, step: self.steps[max(step - 1, 0)])


@pytest.fixture(scope="module")
def expected(pair: Any) -> np.ndarray:
    return run_reference(pair, **GUIDED)


def test_the_unchanged_runtime_passes(pair: Any, expected: np.ndarray) -> None:
    pair.assert_close(pair.run_ours(**GUIDED), expected)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_runtime_fails(pair: Any, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    MUTANTS[name](monkeypatch.setattr)
    difference = pair.compare(pair.run_ours(**GUIDED), expected)
    assert difference.excess() >= MARGIN, f"{difference} would pass for right"
