"""The bits of `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`, without torch.

Three things have to agree with PyTorch (2.13 on x86-64 with AVX2 or AVX512):

- the words: MT19937 seeded by `init_genrand` (at::mt19937), which NumPy has too;
- which words become which value (at::native::templates::cpu::normal_fill_AVX2, at::normal_distribution);
- the Box-Muller arithmetic, to the last bit. From 16 values on, ATen computes it in float32 with the Cephes
  polynomials of avx_mathfun.h (log256_ps, sincos256_ps), whose products and sums its compiler fuses. NumPy
  has no fused multiply-add, so `_fma` makes one: in float64 the product of two float32 is exact.

The polynomials see 24-bit uniforms only, so they have 2**24 possible inputs each; over all of them the
float64 detour was found to round as a real fused multiply-add does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telecine.errors import RequestError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 16  # values that normal_fill makes at once: 8 radii and 8 angles give 8 cosines, then 8 sines
CHUNK = 1024  # blocks at a time: temporaries of 64 KiB stay in the cache
SECOND_STREAM = 0x9E3779B9  # 2**32 / golden ratio: far from the seeds that people count up (0, 1, 2, ...)


class Generator:
    """`torch.Generator("cpu").manual_seed(seed)`: successive draws go on where the last one ended.

    Args:
        seed: -2**63 .. 2**64 - 1; as in torch only its low 32 bits count, so 0 and 2**32 are the same.
    Raises:
        RequestError: the seed is no integer, or outside that range.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.MT19937()
        # RandomState's integer seeding is init_genrand; MT19937(seed) itself would hash the seed first.
        state: Any = np.random.RandomState(_checked_seed(seed) & 0xFFFFFFFF).get_state(legacy=False)
        self._words.state = state
        self._spare: float | None = None  # CPUGeneratorImpl::next_double_normal_sample_

    def randn(self, shape: Sequence[int], dtype: str = "float32") -> F32:
        """Draw `shape` standard normals as `torch.randn(shape, generator=self, dtype=dtype)` does.

        bfloat16 and float16 values are rounded to that type and come back as float32, which NumPy has.

        Raises:
            RequestError: an unknown dtype, or a shape with a negative or fractional size.
        """
        shape = _checked_shape(shape)
        if dtype not in _ROUND:
            known = ", ".join(_ROUND)
            raise RequestError(f"dtype is {dtype!r}", expected=known, fix="Draw float32 and cast the result.")
        out = np.empty(math.prod(shape), np.float32)
        if out.size < BLOCK:
            out[:] = [self._next_normal() for _ in range(out.size)]
            return _ROUND[dtype](out).reshape(shape)
        whole = out.size // BLOCK
        for start in range(0, whole, CHUNK):
            stop = min(start + CHUNK, whole)
            out[start * BLOCK : stop * BLOCK] = _ROUND[dtype](self._normals(stop - start))
        tail = out.size % BLOCK
        if tail:  # normal_fill makes the last 16 values again, from fresh words
            if dtype == "float32":  # its float path has drawn a word for every value by then
                self._words.random_raw(tail, output=False)
            out[-BLOCK:] = _ROUND[dtype](self._normals(1))
        return out.reshape(shape)

    def _normals(self, blocks: int) -> F32:
        """Draw (16 * blocks) normals (normal_fill_16_AVX2): each 16 words hold 8 of u1, then 8 of u2."""
        words = self._words.random_raw(blocks * BLOCK).reshape(blocks, 2, BLOCK // 2)
        uniform = (words & 0xFFFFFF).astype(np.float64) * 2.0**-24  # at::uniform_real_distribution<float>
        log = _log(1.0 - uniform[:, 0])  # exact: all are multiples of 2**-24
        radius = np.sqrt(-2.0 * log).astype(np.float32)  # float64 first changes nothing: sqrt rounds safely
        sin, cos = _sincos(_f32(_TWO_PI * uniform[:, 1]))
        normals = np.empty((blocks, 2, BLOCK // 2), np.float32)
        np.multiply(radius, cos, out=normals[:, 0])
        np.multiply(radius, sin, out=normals[:, 1])
        normals += np.float32(0.0)  # `* std + mean` with mean 0 turns -0 into +0
        return normals.reshape(-1)

    def _next_normal(self) -> float:
        """Draw one float64 normal (at::normal_distribution<double>): they come in pairs, one is kept."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        u1, u2 = self._next_uniform(), self._next_uniform()
        radius, theta = math.sqrt(-2.0 * math.log1p(-u2)), 2.0 * math.pi * u1
        self._spare = radius * math.sin(theta)
        return radius * math.cos(theta)

    def _next_uniform(self) -> float:
        """Draw one of [0, 1) from 53 bits of two words, the first one high (CPUGeneratorImpl::random64)."""
        high, low = self._words.random_raw(2).tolist()
        return (((high << 32) | low) & (2**53 - 1)) * 2.0**-53


def second_stream(seed: int) -> Generator:
    """Generator(seed XOR 0x9E3779B9): for what diffusers draws from torch's global generator.

    Those are the decoder noise of LTX-Video 0.9.1 and stochastic sampling. The constant lies in the low
    32 bits, the ones that count, so the stream differs from Generator(seed) whatever the seed.
    """
    return Generator(_checked_seed(seed) ^ SECOND_STREAM)


def randn(generators: Generator | Sequence[Generator], shape: Sequence[int], dtype: str = "float32") -> F32:
    """Draw `shape` (B, ...) normals from one generator, or (1, ...) from each of B generators.

    As diffusers.utils.torch_utils.randn_tensor: a list of one is that one generator, for the whole shape.

    Raises:
        RequestError: the list's length is not B, or what `Generator.randn` refuses.
    """
    if isinstance(generators, Generator):
        return generators.randn(shape, dtype)
    if len(generators) == 1:
        return generators[0].randn(shape, dtype)
    shape = _checked_shape(shape)
    if not shape or not generators or len(generators) != shape[0]:
        raise RequestError(
            f"{len(generators)} generators for shape {shape}",
            expected="one generator, or one for each element of the first axis",
            fix="Give one seed, or one seed a video.",
        )
    return np.concatenate([each.randn((1, *shape[1:]), dtype) for each in generators])


def _checked_seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = 2**64
    if -(2**63) <= number < 2**64 and not isinstance(seed, (bool, np.bool_)):
        return number
    raise RequestError(
        f"seed is {seed!r}",
        expected="an integer from -2**63 to 2**64 - 1, as for torch",
        fix="Give one from 0 to 2**32 - 1: these reach every stream.",
    )


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise RequestError(f"shape is {shape!r}", expected="integers of 0 or more", fix="Give a tuple.")
    return sizes


# Rounding to nearest, ties to even, as c10::BFloat16 and c10::Half do.


def _bfloat16(x: F32) -> F32:
    bits = x.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32)


def _float16(x: F32) -> F32:
    return x.astype(np.float16).astype(np.float32)


_ROUND: dict[str, Callable[[F32], F32]] = {"float32": lambda x: x, "bfloat16": _bfloat16, "float16": _float16}


# The arithmetic of avx_mathfun.h. Every array below is float64 and holds float32 values.


def _f32(x: F64) -> F64:
    """Round float64 to float32 values, and keep them as float64 for the next product."""
    return x.astype(np.float32).astype(np.float64)


def _fma(a: F64 | float, b: F64, c: F64 | float) -> F64:
    """Round a * b + c once to float32, as one fused multiply-add of float32 does."""
    total = a * b
    total += c
    return _f32(total)


def _constants(*values: float) -> tuple[float, ...]:
    return tuple(float(np.float32(value)) for value in values)


_TWO_PI, _4_OVER_PI, _SQRT_HALF = _constants(2 * math.pi, 1.27323954473516, 0.707106781186547524)
_LOG_P = _constants(
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LN2_LOW, _LN2_HIGH = _constants(-2.12194440e-4, 0.693359375)
# -pi / 4 in three parts
_MINUS_QUARTER_PI = _constants(-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
_SIN_P = _constants(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS_P = _constants(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def _polynomial(x: F64, coefficients: Sequence[float]) -> F64:
    """Evaluate a polynomial at (N, 8) by Horner's rule, highest power first, one rounding a step."""
    y = _fma(coefficients[0], x, coefficients[1])
    for coefficient in coefficients[2:]:
        y = _fma(y, x, coefficient)
    return y


def _log(u: F64) -> F64:
    """Take the natural logarithm of (N, 8) in (0, 1] (log256_ps)."""
    x, exponent = np.frexp(u)
    small = x < _SQRT_HALF
    e = (exponent - small).astype(np.float64)
    x = np.where(small, 2.0 * x, x) - 1.0
    z = _f32(x * x)
    y = _f32(_polynomial(x, _LOG_P) * x)
    y = _fma(y, z, _f32(e * _LN2_LOW))
    y = _fma(-0.5, z, y)
    return _fma(_LN2_HIGH, e, _f32(x + y))


def _sincos(theta: F64) -> tuple[F32, F32]:
    """Take the sine and cosine of (N, 8) in [0, 2 pi] (sincos256_ps, less its care for theta < 0)."""
    octant = ((theta * _4_OVER_PI).astype(np.float32).astype(np.int32) + 1) & ~1  # 0, 2, 4, 6 or 8
    x = theta
    for part in _MINUS_QUARTER_PI:
        x = _fma(part, octant.astype(np.float64), x)
    z = _f32(x * x)
    cos = _fma(_f32(_polynomial(z, _COS_P) * z), z, -0.5 * z)
    cos += 1.0
    sin = _fma(_f32(_polynomial(z, _SIN_P) * z), x, x)
    swap = (octant & 2) != 0  # nearer to the y axis than to x: the two trade places
    sin, cos = np.where(swap, cos, sin), np.where(swap, sin, cos)
    sin = np.where(octant & 4, -sin, sin)
    cos = np.where((octant + 2) & 4, -cos, cos)
    return sin.astype(np.float32), cos.astype(np.float32)
