"""How every benchmark measures: ours and the peer in turn, so that a busy machine slows both, and medians."""

import statistics
import time
from collections.abc import Callable

N_RUNS = 3


def in_turn(*calls: Callable[[], object], n_runs: int = N_RUNS) -> list[float]:
    """Median seconds of each call over `n_runs` rounds, in each of which every call runs once."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(n_runs):
        for call, found in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]
