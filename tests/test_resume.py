"""Training that is killed, or meets a full disk, a bad file or a second run, loses nothing that was saved.

Each fault is made for real, most of them in a process of its own; none is a mock.
"""

import random

import pytest

from lmsurvey_code.training_worker import CONFIG, SAVE_EVERY, run_until


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run says that nothing interrupts, and the bytes of its last checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "run.safetensors"
    said = run_until(path)
    return said[-1], path.read_bytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_killed_at_a_random_step_ends_bit_identical(tmp_path, whole, seed):
    path, killed = tmp_path / "run.safetensors", random.Random(seed).randrange(SAVE_EVERY + 1, CONFIG.n_steps)
    said = run_until(path, f"step {killed}")
    assert said[0] == "step 0"
    said = run_until(path)
    assert said[0] == f"step {killed - killed % SAVE_EVERY}"  # it went on from the last checkpoint
    assert said[-1] == whole[0]
    assert path.read_bytes() == whole[1]


@pytest.mark.parametrize("line", ["rename 3", "renamed 3"])
def test_a_run_killed_in_the_rename_of_a_checkpoint_ends_bit_identical(tmp_path, whole, line):
    path = tmp_path / "run.safetensors"
    run_until(path, line, hold=3 if line == "rename 3" else 0)
    said = run_until(path)
    assert said[0] == f"step {SAVE_EVERY * (2 if line == 'rename 3' else 3)}"
    assert said[-1] == whole[0]
    assert path.read_bytes() == whole[1]
