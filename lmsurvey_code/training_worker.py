"""A run in a process of its own, to be killed: `python -m lmsurvey_code.training_worker CHECKPOINT HOLD BYTES`.

Used by the chapter *Training* and by the tests of exact resume. It prints one line before each step, and one before and
after each rename of a checkpoint, so that whoever started it can kill it there. It sleeps in front of rename
number HOLD (0: of none), and may write no file of more than BYTES (0: any), like a disk that is full. At its end it
prints a checksum of the final weights.
"""

import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmsurvey_code.training import TrainConfig, draw_batch, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

CONFIG = TrainConfig(n_steps=30, batch_size=4, block_size=16, optimizer="muon", warmup=2, precision="float32")
SAVE_EVERY = 4  # steps
TOKENS = np.random.default_rng(0).integers(0, 50, 2000)


def say(line: str) -> None:
    """One line, at once."""
    print(line, flush=True)


def work(checkpoint: str, hold: int) -> int:
    """Train from the checkpoint where there is one; checksum of the final weights."""
    replace, renames = os.replace, 0

    def slow_replace(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        say(f"rename {renames}")
        if renames == hold:
            time.sleep(60)
        replace(source, target)
        say(f"renamed {renames}")

    def draw(data: torch.Tensor, config: TrainConfig, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        say(f"step {step}")
        return draw_batch(data, config, 0)

    os.replace = slow_replace
    set_seed(0)
    net = Transformer(TransformerConfig(50, CONFIG.block_size, n_layer=2, n_head=2, n_embd=32))
    train(net, TOKENS, CONFIG, draw=draw, checkpoint=checkpoint, save_every=SAVE_EVERY)
    return zlib.crc32(b"".join(p.detach().numpy().tobytes() for p in net.parameters()))


def command(checkpoint: str | Path, hold: int = 0, max_bytes: int = 0) -> dict[str, Any]:
    """What `subprocess` needs to start the run in a process of its own."""
    args = [sys.executable, "-m", "lmsurvey_code.training_worker", str(checkpoint), str(hold), str(max_bytes)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "LMSURVEY_QUIET": "1"}
    return {"args": args, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def run_until(
    checkpoint: str | Path, line: str | None = None, hold: int = 0, max_bytes: int = 0, seconds: float = 120.0
) -> list[str]:
    """Start the run in a child process and kill it with SIGKILL at `line` (None: let it end); the lines that it said.

    Raises:
        TimeoutError: it took longer than `seconds`, and was killed.
        RuntimeError: it ended without `line`, or with an error.
    """
    said, start = [], time.monotonic()
    with subprocess.Popen(**command(checkpoint, hold, max_bytes)) as child:
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        for text in child.stdout:
            said.append(text.strip())
            if said[-1] == line:
                child.kill()  # SIGKILL: no handler runs, nothing is written any more
                break
        errors = child.stderr.read()
    timer.cancel()
    if time.monotonic() - start > seconds:
        raise TimeoutError(f"seconds: no end after {seconds}; the last lines: {said[-3:]}")
    if (line is not None and said[-1:] != [line]) or (line is None and child.returncode):
        raise RuntimeError(f"line: {line!r} was not reached; {errors[-500:]}")
    return said


if __name__ == "__main__":
    if max_bytes := int(sys.argv[3]):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    say(f"weights {work(sys.argv[1], int(sys.argv[2]))}")
