"""The ring against its lower bound, with a producer and a consumer of known durations; and its own cost per batch.

pytest benchmarks/engine --benchmark-enable --benchmark-only
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from ptgm_fast.engine import InlineRuntime, Ring, ThreadRuntime

NUM = 100
LONGER = 0.02


def run(produce: float, consume: float) -> float:
    """Seconds for NUM batches; both sides sleep, so they use no core."""
    order = []
    started = time.perf_counter()
    with Ring(
        lambda i: time.sleep(produce) or i, stop=NUM, depth=3, runtime=ThreadRuntime()
    ) as ring:
        for index in ring:
            time.sleep(consume)
            order.append(index)
    seconds = time.perf_counter() - started
    assert order == list(range(NUM))
    return seconds


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 5.0])
def test_bound(benchmark: Any, ratio: float) -> None:
    """n batches with s seconds per batch in the producer and t in the consumer take at most 1.02 (n max(s, t) + min(s, t))."""
    produce, consume = (LONGER, LONGER / ratio) if ratio >= 1 else (LONGER * ratio, LONGER)
    benchmark.group = "ring, producer / consumer"
    seconds = benchmark.pedantic(run, args=(produce, consume), rounds=3)
    # Sleeping takes longer than requested, so its real duration is measured, too.
    bound = NUM * slept(max(produce, consume)) + slept(min(produce, consume))
    benchmark.extra_info["of the bound"] = round(seconds / bound, 4)
    assert seconds <= 1.02 * bound


def slept(seconds: float, num: int = 50) -> float:
    started = time.perf_counter()
    for _ in range(num):
        time.sleep(seconds)
    return (time.perf_counter() - started) / num


@pytest.mark.parametrize("contender", ["thread", "inline"])
def test_overhead(benchmark: Any, contender: str) -> None:
    """The cost of an empty batch."""
    num = 2000
    benchmark.group = f"ring, {num} empty batches"

    def empty() -> int:
        runtime = ThreadRuntime() if contender == "thread" else InlineRuntime()
        with Ring(lambda i: i, stop=num, depth=3, runtime=runtime) as ring:
            return sum(1 for _ in ring)

    assert empty() == num
    benchmark.pedantic(empty, rounds=10, warmup_rounds=1)
    seconds = benchmark.stats.stats.median / num
    benchmark.extra_info["microseconds a batch"] = round(seconds * 1e6, 1)
    assert seconds < 50e-6
