"""What this machine can do at most: matrix products and copies of memory, on so many threads.

    python -m telecine.bench.rates THREADS

in a fresh process, because a BLAS library reads its number of threads once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from telecine.bench.competitor import now
from telecine.bench.settings import Settings
from telecine.errors import BackendError

SIDE = 2048  # of the matrices, float32: the caches hold parts of them only
COPIED = 1 << 28  # bytes
REPEATS = 7


def measured_rates(settings: Settings) -> dict[str, float]:
    """Operations a second of float32 matrix products (`matmul`); bytes a second read and written by copying (`copy`).

    Raises:
        BackendError: the process that measures failed.
    """
    command = [sys.executable, "-m", "telecine.bench.rates", str(settings.threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings.environment(), check=False)
    if done.returncode:
        raise BackendError(
            f"measuring rates failed: {done.stderr.strip()[-200:]}", expected="two numbers", fix="Free memory."
        )
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def matmul_rate() -> float:
    """Operations a second of the best of several products."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    return 2 * SIDE**3 / _best(lambda: np.matmul(a, b, out=out))


def copy_rate(threads: int) -> float:
    """Bytes a second, each counted when it is read and when it is written, of the best of several copies."""
    source = np.ones(COPIED, np.uint8)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return 2 * COPIED / _best(lambda: list(pool.map(lambda pair: np.copyto(*pair), parts)))


def _best(work: Callable[[], object]) -> float:
    """Wall seconds of the quickest run."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = now()[0]
        work()
        seconds.append(now()[0] - start)
    return min(seconds)


if __name__ == "__main__":
    print(json.dumps({"matmul": matmul_rate(), "copy": copy_rate(int(sys.argv[1]))}))
