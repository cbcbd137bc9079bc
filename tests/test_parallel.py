"""Several processes compute what one computes, send what the formulas say, and lose nothing when one of them dies.

Every run is real: torchrun, two or three processes, gloo. Two processes on two cores prove equality, never speed.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from lmsurvey_code import parallel, pretrain
from lmsurvey_code.pretrain import arguments, launch, read_tokens, run, what_went_wrong

NAMES = ["ddp", "fsdp", "tensor", "pipeline"]
SETTINGS = ["--precision", "float32", "--accumulate", 2]  # the book's corpus, 2 blocks, 100 thousand weights
SMALL = ["--n-embd", 32, "--block-size", 16, "--batch-size", 12, "--steps", 16, "--precision", "float32"]


@pytest.fixture(scope="module")
def single():
    """The run of 50 steps in this process."""
    return run(arguments().parse_args([str(s) for s in SETTINGS]))


@pytest.fixture(scope="module")
def teams():
    """The same runs by two processes."""
    return {name: launch(*SETTINGS, "--parallel", name, "--count") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_losses_of_one_over_50_steps(single, teams, name):
    losses = np.array(teams[name]["losses"])
    assert teams[name]["processes"] == 2
    assert len(losses) == 50
    assert losses[-1] < 0.75 * losses[0]  # it learns
    np.testing.assert_allclose(losses, single["losses"], rtol=1e-5)


@pytest.mark.parametrize(("name", "batch_size", "accumulate"), [("ddp", 8, 8), ("fsdp", 12, 4), ("pipeline", 12, 6)])
def test_parts_that_a_share_cannot_be_cut_into_are_fewer(name, batch_size, accumulate):
    """A process with 4 texts makes 4 parts of them, where `accumulate` says 8."""
    settings = [*SETTINGS, "--batch-size", batch_size, "--accumulate", accumulate, "--steps", 12]
    expected = run(arguments().parse_args([str(s) for s in settings]))["losses"]
    np.testing.assert_allclose(launch(*settings, "--parallel", name)["losses"], expected, rtol=1e-5)


def test_each_process_keeps_its_part_of_the_weights(single, teams):
    whole, block = single["kept"], 4 * 64 * 64 + 3 * 64 * 192 + 2 * 64  # two norms
    assert whole == 256 * 64 + 2 * block + 64
    assert teams["ddp"]["kept"] == whole
    assert teams["fsdp"]["kept"] == whole // 2
    assert teams["tensor"]["kept"] == whole - (block - 128)  # half of the matrices of two blocks
    assert teams["pipeline"]["kept"] == whole - block - 64  # the last norm is in the other process


def test_bytes_are_those_of_the_formulas(single, teams):
    gradients, stream = 4 * single["kept"], 4 * 8 * 64 * 64  # float32; 8 windows of 64 tokens, 64 numbers each
    parts, n_layer, embedding = 2, 2, 4 * 256 * 64
    assert teams["ddp"]["bytes"] == {"all-reduce": gradients}
    assert teams["fsdp"]["bytes"] == {"all-gather": parts * 2 * gradients, "reduce-scatter": gradients}
    assert teams["tensor"]["bytes"] == {"all-reduce": 4 * n_layer * stream}
    assert teams["tensor"]["calls"] == {"all-reduce": 4 * n_layer * parts}
    assert teams["pipeline"]["bytes"] == {"send": stream, "all-reduce": embedding}
    assert teams["ddp"]["sent"] == gradients  # 2 (p - 1) / p, with p = 2


@pytest.fixture(scope="module")
def whole_weights():
    """Checksums of the weights at the end of runs that nothing interrupts."""
    return {name: launch(*SMALL, "--parallel", name)["weights"] for name in ("ddp", "fsdp")}


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_worker_killed_in_a_step_ends_the_others_and_the_next_start_goes_on(tmp_path, whole_weights, name):
    settings = [*SMALL, "--parallel", name, "--save-every", 4, "--checkpoint", tmp_path / "run"]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="process 1 was killed by SIGKILL"):
        launch(*settings, "--drill", "1:10:SIGKILL")
    assert time.monotonic() - start < 90
    resumed = launch(*settings)
    assert resumed["first_step"] == 8
    assert resumed["weights"] == whole_weights[name]  # to the bit
    if name == "fsdp":
        assert [folder.name for folder in parallel.steps_in(tmp_path / "run")] == ["step-00000016"]


def test_a_worker_that_stops_is_not_waited_for_without_end(tmp_path):
    with pytest.raises(RuntimeError, match=r"process 0: RuntimeError: .*[Tt]imed out"):
        launch(*SMALL, "--timeout", 5, "--drill", "1:3:SIGSTOP", seconds=150)


def test_sharded_checkpoints(tmp_path):
    """Another number of processes goes on; another configuration, a damaged file and a full disk are refused."""
    path = tmp_path / "run"
    settings = [*SMALL, "--parallel", "fsdp", "--save-every", 4, "--checkpoint", path]
    expected = run(arguments().parse_args([str(s) for s in SMALL]))["losses"]
    with pytest.raises(RuntimeError, match="SIGKILL"):
        launch(*settings, "--drill", "0:6:SIGKILL")
    (kept,) = parallel.steps_in(path)
    before = {file.name: file.read_bytes() for file in kept.iterdir()}
    with pytest.raises(RuntimeError, match=r"ValueError: checkpoint: .* is from a run with other learning_rate, net;"):
        launch(*settings, "--learning-rate", 0.5, "--n-layer", 1)
    for file in kept.glob("*.safetensors"):
        file.write_bytes(before[file.name][:-100])
    with pytest.raises(RuntimeError, match=r"ValueError: checkpoint: .* is damaged"):
        launch(*settings)
    for file in kept.glob("*.safetensors"):
        file.write_bytes(before[file.name])
    resumed = launch(*settings, processes=3)
    assert resumed["first_step"] == 4
    np.testing.assert_allclose(resumed["losses"], expected, rtol=1e-5)


def test_a_full_disk_leaves_the_last_step_whole(tmp_path):
    size = 300_000  # room for one step (3 numbers for each of 33 thousand weights), and not for two
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * size}", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk here")
    settings = [*SMALL, "--parallel", "fsdp", "--save-every", 4, "--checkpoint", tmp_path / "run"]
    try:
        with pytest.raises(RuntimeError, match=r"OSError: checkpoint: .*step-00000008 was not written"):
            launch(*settings)
        shutil.copytree(tmp_path / "run", tmp_path.parent / "run")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert [folder.name for folder in parallel.steps_in(tmp_path.parent / "run")] == ["step-00000004"]
    assert launch(*settings[:-1], tmp_path.parent / "run")["first_step"] == 4


def test_a_share_without_targets_counts_for_nothing(tmp_path):
    """The mean is over the targets of all processes, and a process without any does not leave the others waiting."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(pretrain.__file__).parents[1])!r})
import numpy as np, torch, torch.distributed as dist
from lmsurvey_code.parallel import TEAMS
from lmsurvey_code.training import TrainConfig, draw_batch, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

dist.init_process_group("gloo")
config = TrainConfig(n_steps=8, batch_size=4, block_size=16, warmup=1, precision="float32")

def draw(data, config, step):
    x, y = draw_batch(data, config, step)
    y = y.clone()
    y[2:] = -100  # all that the second process would learn from
    y[0, :9] = -100
    return x, y

def losses(team):
    set_seed(0)
    net = Transformer(TransformerConfig(50, 16, n_layer=1, n_head=2, n_embd=32))
    return train(net, np.arange(2000) % 47, config, draw=draw, device="cpu", team=team).losses

expected = losses(None)
for name in ("ddp", "fsdp"):
    np.testing.assert_allclose(losses(TEAMS[name]()), expected, rtol=1e-5)
""")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(script)], check=True, timeout=120, capture_output=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--batch-size", 7], "ValueError: batch_size: 7; allowed: a multiple of the number of processes, 2"),
        (["--parallel", "tensor", "--n-head", 1], r"ValueError: net: \(1, 1, 192\) heads"),
        (["--parallel", "pipeline", "--n-layer", 1], "ValueError: net: .*n_layer of 2 or more"),
        (["--data", __file__], "process 1: ValueError: data: .* is no whole .npy file"),
    ],
)
def test_what_does_not_divide_is_refused(settings, message):
    with pytest.raises(RuntimeError, match=message):
        launch(*settings, seconds=90)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("--parallel fsdp --optimizer sgd", "optimizer, precision: sgd, auto with fsdp; allowed: adamw, float32"),
        ("--parallel tensor --optimizer muon", "optimizer, precision: muon, auto with tensor; allowed: adamw or sgd"),
        ("--parallel tensor --precision float16", "optimizer, precision: adamw, float16 with tensor"),
        ("--vocab-size 90", "vocab_size: 90; allowed: 256 or more"),
        ("--count --checkpoint x", "count: with a checkpoint; allowed: without"),
        ("--batch-size 0", "batch_size: 0; allowed: 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run(arguments().parse_args(settings.split()))


@pytest.mark.parametrize("text", ["0:2", "0:2:KILL", "x:2:SIGKILL"])
def test_a_drill_that_is_none_is_refused_before_the_run(text, capsys):
    with pytest.raises(SystemExit):
        arguments().parse_args(["--drill", text])
    assert f"invalid drill value: '{text}'" in capsys.readouterr().err


def two_processes(tmp_path: Path, body: str) -> subprocess.CompletedProcess:
    """What torchrun's two processes say and return, when each runs `body`, after these imports."""
    script = tmp_path / "script.py"
    imports = "import os, sys\nsys.path.insert(0, {!r})\nfrom lmsurvey_code import parallel, pretrain\n"
    script.write_text(imports.format(str(Path(pretrain.__file__).parents[1])) + body)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run(torchrun, timeout=120, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_processes_that_see_different_checkpoints_do_not_go_on(tmp_path, name):
    """As with a disk of its own for each machine: only the first process has one."""
    settings = [*SMALL, "--parallel", name, "--save-every", 4, "--checkpoint"]
    launch(*settings, tmp_path / "disk0" / "run")
    kept = sorted(path.name for path in (tmp_path / "disk0").rglob("*"))
    own = f"{str(tmp_path)!r} + '/disk' + os.environ['RANK'] + '/run'"
    done = two_processes(tmp_path, f"pretrain.main([*{[str(s) for s in settings]}, {own}])")
    assert done.returncode
    assert "OSError: checkpoint: not all processes see the same" in done.stderr
    assert sorted(path.name for path in (tmp_path / "disk0").rglob("*")) == kept


def test_sharded_states_on_two_disks_are_not_written(tmp_path):
    """The first save finds out, and no process waits for another."""
    settings = [*SMALL, "--parallel", "fsdp", "--save-every", 4, "--checkpoint"]
    own = f"{str(tmp_path)!r} + '/disk' + os.environ['RANK'] + '/run'"
    done = two_processes(tmp_path, f"pretrain.main([*{[str(s) for s in settings]}, {own}])")
    assert done.returncode
    assert "this process does not see the folder of the first one" in done.stderr


def test_a_step_with_a_number_that_is_not_finite_is_not_kept(tmp_path):
    """Sharded: the weights of one process break, all stop, and the step before stays."""
    settings = [*SMALL, "--parallel", "fsdp", "--save-every", 4, "--checkpoint", tmp_path / "run"]
    body = f"""
before = parallel.tensors_of
def broken(net, optimizers):
    tensors = before(net, optimizers)
    steps = [t for name, t in tensors.items() if name.endswith("step")]
    if os.environ["RANK"] == "1" and steps and float(steps[0]) == 8:
        parallel.local(next(iter(tensors.values()))).fill_(float("nan"))
    return tensors
parallel.tensors_of = broken
pretrain.main({[str(s) for s in settings]})
"""
    done = two_processes(tmp_path, body)
    assert done.returncode
    assert "FloatingPointError: checkpoint: net." in done.stderr
    assert [folder.name for folder in parallel.steps_in(tmp_path / "run")] == ["step-00000004"]


def test_a_file_of_another_run_is_no_folder_of_steps(tmp_path):
    (tmp_path / "run").write_bytes(b"ddp")
    with pytest.raises(RuntimeError, match=r"ValueError: checkpoint: .* is a file, of another kind of run"):
        launch(*SMALL, "--parallel", "fsdp", "--checkpoint", tmp_path / "run")


def test_torchrun_starts_again_and_the_run_goes_on(tmp_path):
    settings = [*SMALL, "--parallel", "fsdp", "--save-every", 4, "--checkpoint", tmp_path / "run"]
    settings += ["--drill", "1:10:SIGKILL", "--result", tmp_path / "result.json"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 1]
    command = [sys.executable, "-m", *torchrun, "-m", "lmsurvey_code.pretrain", *settings]
    # A new list of addresses for each start, or a process may find one of the start before.
    env = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    subprocess.run([str(part) for part in command], check=True, timeout=120, capture_output=True, env=env)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["first_step"] == 8
    assert len(result["losses"]) == 16


def test_shards_of_data(tmp_path):
    good, empty, odd, high = (tmp_path / f"{name}.npy" for name in ("good", "empty", "odd", "high"))
    np.save(good, np.arange(200, dtype=np.uint16))
    np.save(empty, np.array([], dtype=np.uint16))
    np.save(odd, np.ones((2, 100)))
    np.save(high, np.full(200, 256))
    assert read_tokens([str(good), str(good)], 64, 256).tolist() == [*range(200), *range(200)]
    for path, message in (
        (empty, "holds 0 tokens; allowed: more than block_size = 64"),
        (odd, "allowed: one row of whole numbers"),
        (high, "holds 256 to 256; allowed: 0 to 255"),
    ):
        with pytest.raises(
            ValueError, match=f"data: .*{path.name} {message.split(';')[0].split('allowed')[0].strip()}"
        ):
            read_tokens([str(good), str(path)], 64, 256)
    with pytest.raises(FileNotFoundError, match=r"data: .* is missing"):
        read_tokens([str(tmp_path / "none.npy")], 64, 256)
    good.write_bytes(good.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"data: .* is no whole .npy file"):
        read_tokens([str(good)], 64, 256)


def test_a_run_that_takes_too_long_is_killed_with_all_its_children():
    with pytest.raises(TimeoutError, match="seconds: no end after 12; all processes were killed"):
        launch("--steps", 1_000_000, "--seed", 987_654, seconds=12)
    time.sleep(1)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if "987654" in (p.info["cmdline"] or [])]
    assert left == []


def test_what_went_wrong_shows_the_last_lines_where_it_knows_nothing_better():
    assert what_went_wrong("a\nb\nc\nd\ne\nf\n") == "b\nc\nd\ne\nf"


def test_traffic_counts_nothing_in_one_process():
    with parallel.Traffic() as traffic:
        torch.ones(3) + 1
    assert (traffic.bytes, traffic.sent(1)) == ({}, 0)
