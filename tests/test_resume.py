"""Training that is killed, or meets a full disk, a bad file or a second run, loses nothing that was saved.

Each fault is made for real, most of them in a process of its own; none is a mock.
"""

import random
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lmsurvey_code import training_worker
from lmsurvey_code.training import draw_batch, set_seed, train
from lmsurvey_code.training_worker import CONFIG, SAVE_EVERY, TOKENS, run_until
from lmsurvey_code.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run says at its end when nothing interrupts it, and its last checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "run.safetensors"
    said = run_until(path)
    return said[-1], contents(path)


def contents(path) -> dict[str, object]:
    """All that a checkpoint holds, to the bit; the order of what stands in its header is not kept by safetensors."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() | {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def files(path) -> list[str]:
    """All names beside a checkpoint, without its lock."""
    return sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock")


def new_net(seed: int = 0) -> Transformer:
    set_seed(seed)
    return Transformer(TransformerConfig(50, CONFIG.block_size, n_layer=2, n_head=2, n_embd=32))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_killed_at_a_random_step_ends_bit_identical(tmp_path, whole, seed):
    path, killed = tmp_path / "run.safetensors", random.Random(seed).randrange(SAVE_EVERY + 1, CONFIG.n_steps)
    assert run_until(path, f"step {killed}")[0] == "step 0"
    said = run_until(path)
    assert said[0] == f"step {killed - killed % SAVE_EVERY}"  # it went on from the last checkpoint
    assert said[-1] == whole[0]
    assert contents(path) == whole[1]
    assert files(path) == ["run.safetensors"]


@pytest.mark.parametrize("line", ["rename 3", "renamed 3"])
def test_a_run_killed_in_the_rename_of_a_checkpoint_ends_bit_identical(tmp_path, whole, line):
    path = tmp_path / "run.safetensors"
    run_until(path, line, hold=3 if line == "rename 3" else 0)
    assert len(files(path)) == (2 if line == "rename 3" else 1)  # what was not yet renamed lies beside it
    said = run_until(path)
    assert said[0] == f"step {SAVE_EVERY * (2 if line == 'rename 3' else 3)}"
    assert said[-1] == whole[0]
    assert contents(path) == whole[1]
    assert files(path) == ["run.safetensors"]


def test_a_file_that_may_not_grow_leaves_the_last_checkpoint(tmp_path, whole):
    path = tmp_path / "run.safetensors"
    run_until(path, f"step {SAVE_EVERY + 1}")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"OSError: checkpoint: .* was not written .*an earlier one is as it was"):
        run_until(path, max_bytes=len(before) // 2)
    assert path.read_bytes() == before
    assert files(path) == ["run.safetensors"]
    assert run_until(path)[-1] == whole[0]  # there is room again


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, whole):
    size = 3 * sum(map(len, whole[1].values())) // 2  # room for one checkpoint, not for two
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        path = tmp_path / "run.safetensors"
        with pytest.raises(RuntimeError, match=r"OSError: checkpoint: .* was not written .*No space left on device"):
            run_until(path)
        assert files(path) == ["run.safetensors"]
        shutil.copy(path, tmp_path.parent / "run.safetensors")
        assert run_until(tmp_path.parent / "run.safetensors")[0] == f"step {SAVE_EVERY}"  # whole
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_second_run_on_the_same_file_is_refused_and_the_first_goes_on(tmp_path, whole):
    path = tmp_path / "run.safetensors"
    with subprocess.Popen(**training_worker.command(path, hold=2)) as first:
        while first.stdout.readline().strip() != "rename 2":
            pass
        before = path.read_bytes()
        with pytest.raises(RuntimeError, match="ValueError: checkpoint: another run writes to"):
            run_until(path)
        with pytest.raises(ValueError, match="another run writes to"):  # the refusal did not free the claim
            train(new_net(), TOKENS, CONFIG, checkpoint=path)
        assert path.read_bytes() == before
        assert len(files(path)) == 2  # the half-written file of the first run is still its own
        first.kill()
    assert run_until(path)[-1] == whole[0]  # the claim of a killed run is free


def test_a_truncated_checkpoint_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "run.safetensors"
    run_until(path, f"step {SAVE_EVERY + 1}")
    whole_file = path.read_bytes()
    for length in (0, 7, 100, len(whole_file) // 2, len(whole_file) - 1):
        path.write_bytes(whole_file[:length])
        with pytest.raises(ValueError, match=r"checkpoint: .* is damaged or no checkpoint"):
            train(new_net(), TOKENS, CONFIG, checkpoint=path)
        assert path.read_bytes() == whole_file[:length]


def test_a_checkpoint_of_another_configuration_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "run.safetensors"
    train(new_net(), TOKENS, CONFIG, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="from a run with other learning_rate, weight_decay;"):
        train(
            new_net(),
            TOKENS,
            replace(CONFIG, learning_rate=0.5, weight_decay=0.1),
            checkpoint=path,
        )
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_a_number_ends_the_run_and_the_last_checkpoint_stays(tmp_path, where):
    """A loss of NaN; and a loss that is fine with a gradient that is not, in the step before a checkpoint."""

    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.breaks = new_net(), False

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            x = self.inner(idx)
            if self.breaks and where == "loss":
                return x * torch.nan
            if self.breaks:
                return x + (0 * x).abs().sqrt()  # + 0, with a gradient of 0 / 0
            return x

    nets, path = [Fragile() for _ in range(3)], tmp_path / "run.safetensors"
    expected = train(nets[0], TOKENS, CONFIG).losses

    def draw(data, config, step):
        nets[1].breaks = step == 2 * SAVE_EVERY - 1
        return draw_batch(data, config, step)

    message = "the loss is nan at step 7" if where == "loss" else "is no longer finite; .* stays as it was"
    with pytest.raises(FloatingPointError, match=message):
        train(nets[1], TOKENS, CONFIG, draw=draw, checkpoint=path, save_every=SAVE_EVERY)
    assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    assert train(nets[2], TOKENS, CONFIG, checkpoint=path, save_every=SAVE_EVERY).losses == expected


@pytest.mark.parametrize("n", [0, 1, CONFIG.block_size])
def test_an_empty_or_too_short_shard_is_refused_before_anything_is_written(tmp_path, n):
    path = tmp_path / "run.safetensors"
    with pytest.raises(ValueError, match=f"tokens: {n}; allowed: more than block_size = 16"):
        train(new_net(), np.zeros(n), CONFIG, checkpoint=path)
    assert list(tmp_path.iterdir()) == []


def test_the_helper_says_when_the_run_does_not_end_as_asked(tmp_path):
    with pytest.raises(RuntimeError, match="line: 'step 99' was not reached"):
        run_until(tmp_path / "a", "step 99")
    with pytest.raises(TimeoutError, match="seconds: no end after 1"):
        run_until(tmp_path / "b", hold=1, seconds=1.0)
