"""The training loop: it learns, repeats itself exactly, goes on after a break, and refuses what it cannot do."""

import json
import math
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lmsurvey_code import checkpoints, training
from lmsurvey_code.optimizers import Muon, orthogonalize
from lmsurvey_code.recurrent import RecurrentLM
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.training import (
    TrainConfig,
    draw_batch,
    draw_in_passes,
    join_documents,
    make_optimizers,
    set_seed,
    train,
)
from lmsurvey_code.transformer import Transformer, TransformerConfig

TOKENS = np.arange(400) % 7  # 0 1 2 3 4 5 6 0 1 ...: the next token is certain
CONFIG = TrainConfig(n_steps=12, batch_size=4, block_size=8, optimizer="muon", warmup=2, precision="float32")


def changed(**changes) -> TrainConfig:
    return TrainConfig(**{**CONFIG.__dict__, **changes})


def new_net(seed: int = 0) -> nn.Module:
    set_seed(seed)
    return Transformer(TransformerConfig(7, 8, n_layer=1, n_head=2, n_embd=16))


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_learns_what_is_certain(kind, optimizer):
    net = new_net() if kind == "transformer" else RecurrentLM(7, 16, 16)
    slow = {"learning_rate": 0.3, "momentum": 0.9, "n_steps": 200}
    settings = slow if optimizer == "sgd" else {"learning_rate": 0.02, "n_steps": 100}
    history = train(net, TOKENS, changed(optimizer=optimizer, **settings))
    assert history.losses[0] == pytest.approx(math.log(7), abs=0.2)  # before the first update: uniform
    assert history.losses[-1] < 0.2


def test_same_seed_same_weights_other_seed_other_weights():
    nets = [new_net() for _ in range(3)]
    for net, seed in zip(nets, (3, 3, 4), strict=True):
        train(net, TOKENS, changed(seed=seed))
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    assert not torch.equal(weights(nets[0]), weights(nets[2]))


def test_training_leaves_the_global_generator_alone():
    net = new_net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(net, TOKENS, CONFIG)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}, {"precision": "float16"}, {}],
)
def test_a_broken_run_goes_on_to_the_same_weights(tmp_path, changes):
    config = changed(**changes, eval_every=3)
    whole, broken, resumed = new_net(), new_net(), new_net(seed=9)
    expected = train(whole, TOKENS, config, evaluate=lambda: 1.5)
    calls = []

    def stop_at_the_third() -> float:
        calls.append(1)
        if len(calls) == 3:  # after step 9; the checkpoint is that of step 8
            raise KeyboardInterrupt
        return 1.5

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(broken, TOKENS, config, evaluate=stop_at_the_third, checkpoint=path, save_every=4)
    with safe_open(path, framework="pt") as file:
        assert len(json.loads(file.metadata()["past"])["losses"]) == 8
    history = train(resumed, TOKENS, config, evaluate=lambda: 1.5, checkpoint=path, save_every=4)
    assert history == expected
    assert torch.equal(weights(resumed), weights(whole))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.safetensors", "run.safetensors.lock"]
    again = new_net(seed=9)  # a finished run is not trained further
    assert train(again, TOKENS, config, checkpoint=path).losses == expected.losses
    assert torch.equal(weights(again), weights(whole))


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    train(new_net(), TOKENS, CONFIG, checkpoint=path)
    for config, tokens, net, named in (
        (changed(n_steps=13, seed=1), TOKENS, new_net(), "other n_steps, seed;"),
        (CONFIG, TOKENS[::-1].copy(), new_net(), "other tokens;"),
        (CONFIG, TOKENS, RecurrentLM(7, 16, 16), "other net;"),
    ):
        before = weights(net)
        with pytest.raises(ValueError, match=named):
            train(net, tokens, config, checkpoint=path)
        assert torch.equal(weights(net), before)
    data = path.read_bytes()
    other = tmp_path / "other.safetensors"
    save_file(load_file(path), other)  # the same tensors, but nothing says which run they are from
    for bad in (data[: len(data) // 2], data[:4], b"", b"not a checkpoint at all", other.read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"is damaged or no checkpoint .*delete it to start again"):
            train(new_net(), TOKENS, CONFIG, checkpoint=path)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    train(new_net(), TOKENS, CONFIG, checkpoint=path)
    before = path.read_bytes()

    def full(tensors, name, metadata):
        name.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_checkpoint(path, new_net(), [], {}, {})
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.safetensors", "run.safetensors.lock"]


def test_a_loss_that_is_not_a_number_ends_the_run():
    net = new_net()
    with torch.no_grad():
        net.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; try a smaller learning_rate"):
        train(net, TOKENS, CONFIG)


def test_schedule_rises_holds_and_falls():
    config = changed(n_steps=100, warmup=3, decay=0.5)
    # rise 1/4, 2/4, 3/4, then 1; from step 50 a straight fall that would reach 0 at step 100
    factors = [config.learning_rate_factor(step) for step in (0, 1, 2, 3, 50, 75, 99)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.5, 0.02])
    assert changed(decay=0.0).learning_rate_factor(11) == 1


def test_learning_rates_reach_the_optimizers(monkeypatch):
    seen = []
    monkeypatch.setattr(Muon, "step", lambda self: seen.append(self.param_groups[0]["lr"]))
    train(new_net(), TOKENS, changed(n_steps=4, warmup=1, matrix_learning_rate=0.1))
    # warm-up 1/2 at step 0; the fall over the whole run gives 3/4, 2/4, 1/4
    assert seen == pytest.approx([0.05, 0.075, 0.05, 0.025])


def test_muon_takes_the_matrices_of_hidden_layers_only():
    net = new_net()
    adamw, muon = make_optimizers(net, CONFIG)
    names = {id(p): name for name, p in net.named_parameters()}
    in_muon = {names[id(p)] for p in muon.param_groups[0]["params"]}
    in_adamw = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert in_muon == {n for n in names.values() if "attention" in n or "mlp" in n}
    assert in_adamw == {"embedding.weight", "norm.weight", "blocks.0.norm_1.weight", "blocks.0.norm_2.weight"}
    assert len(make_optimizers(net, changed(optimizer="adamw"))) == 1


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_orthogonalize_makes_singular_values_equal(shape):
    torch.manual_seed(0)
    g = torch.randn(shape)
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    found = orthogonalize(g, n_steps=8)
    assert ((torch.linalg.svdvals(found) > 0.6) & (torch.linalg.svdvals(found) < 1.3)).all()
    # the directions are those of g: u^T found v is diagonal, with positive values
    diagonal = u.mT @ found @ v.mT
    off = diagonal - torch.diag(diagonal.diag())
    assert off.abs().max() < 1e-3


def test_muon_updates_two_shapes_as_written_by_hand():
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(s)) for s in ((4, 4), (8, 4), (4, 4))]
    expected = [p.detach().clone() for p in params]
    momenta = [torch.zeros_like(p) for p in expected]
    muon = Muon(params, lr=0.1, weight_decay=0.5)
    for _ in range(2):  # after the first step, momentum and gradient still have one direction
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape)
            momenta[i] = 0.95 * momenta[i] + 0.05 * p.grad
            nesterov = 0.95 * momenta[i] + 0.05 * p.grad
            scale = math.sqrt(max(1, p.shape[0] / p.shape[1]))
            expected[i] = expected[i] * (1 - 0.1 * 0.5) - 0.1 * scale * orthogonalize(nesterov)
        muon.step()
    for p, weights in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), weights, atol=1e-4, rtol=1e-4)


def test_batches_are_windows_and_their_successors():
    x, y = draw_batch(torch.arange(30), changed(batch_size=500))
    assert x.shape == y.shape == (500, 8)
    assert torch.equal(y, x + 1)
    assert (x[:, 1:] == x[:, :-1] + 1).all()
    assert x.min() == 0  # both ends of the text are reached
    assert y.max() == 29


@pytest.mark.parametrize("batch_size", [3, 4, 50])
def test_a_pass_reads_each_window_once_and_the_next_in_another_order(batch_size):
    data, config = torch.arange(8 * 10 + 5), changed(batch_size=batch_size)  # 10 windows of 8, whose ends are known
    batches = [draw_in_passes(data, config, step) for step in range(-(-20 // batch_size))]
    firsts = torch.cat([x[:, 0] for x, _ in batches])[:20].tolist()
    assert all(torch.equal(y, x + 1) and len(x) == batch_size for x, y in batches)
    assert sorted(firsts[:10]) == sorted(firsts[10:]) == list(range(0, 80, 8))
    assert firsts[:10] != firsts[10:]
    again = torch.cat([draw_in_passes(data, config, step)[0][:, 0] for step in range(len(batches))])[:20]
    assert again.tolist() == firsts
    assert draw_in_passes(data, replace(config, seed=1), 0)[0][:, 0].tolist() != firsts[:batch_size]


@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_in_parts_is_the_same_step(masked):
    """Also where the parts hold unequal numbers of targets, one of them none."""

    def draw(data, config, step):
        x, y = draw_batch(data, config, step)
        if masked:
            y = y.clone()
            y[0, 3:], y[1:2] = -100, -100
        return x, y

    nets = [new_net() for _ in range(2)]
    losses = [
        train(net, TOKENS, changed(accumulate=n, optimizer="sgd", learning_rate=1.0), draw=draw).losses
        for net, n in zip(nets, (1, 4), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    torch.testing.assert_close(weights(nets[0]), weights(nets[1]), atol=1e-5, rtol=1e-5)


def test_float16_skips_a_step_that_is_too_large_and_lowers_its_scale(tmp_path):
    path, net = tmp_path / "run.safetensors", new_net()
    before = weights(net).clone()
    net.blocks[0].mlp.down.register_forward_hook(lambda module, args, out: out * 3000)  # its gradient overflows
    losses = train(net, TOKENS, changed(n_steps=1, precision="float16"), checkpoint=path).losses
    assert np.isfinite(losses).all()
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["past"])["scaler"]["scale"] == 2.0**15  # half of the first
    assert torch.equal(weights(net), before)


def test_two_runs_cannot_write_to_one_checkpoint(tmp_path):
    path = tmp_path / "run.safetensors"
    (tmp_path / "run.safetensors.123.partial").write_bytes(b"half")  # a process was killed while it wrote

    def evaluate() -> float:
        with pytest.raises(ValueError, match="checkpoint: another run writes to "):
            train(new_net(), TOKENS, CONFIG, checkpoint=path)
        return 0.0

    assert train(new_net(), TOKENS, CONFIG, checkpoint=path, evaluate=evaluate).evaluations == [(12, 0.0)]
    train(new_net(), TOKENS, CONFIG, checkpoint=path)  # the claim was given back
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.safetensors", "run.safetensors.lock"]


def test_recency_draws_more_from_the_end():
    data = torch.arange(10_000)
    torch.manual_seed(0)
    means = [draw_batch(data, changed(batch_size=4000, recency=r))[0].double().mean().item() for r in (0, 1, 3)]
    # mean of density (r + 1) x^r on 0..1 is (r + 1) / (r + 2)
    assert means == pytest.approx([5_000, 6_667, 8_000], abs=150)


def test_recency_moves_to_its_end_while_the_learning_rate_falls():
    config = changed(n_steps=10, decay=0.5, recency=1.0, recency_end=6.0)
    found = [config.recency_at(step) for step in (0, 5, 6, 9, 10)]
    assert found == pytest.approx([1, 1, 2, 5, 6])
    assert [changed(recency=3.0).recency_at(step) for step in (0, 7)] == [3.0, 3.0]
    starts = []

    class Watched(nn.Module):
        """Notes the first token of each window, and learns nothing."""

        def __init__(self):
            super().__init__()
            self.logits = nn.Embedding(1000, 1000)

        def forward(self, idx):
            starts.append(idx[:, 0].double().mean().item())
            return self.logits(idx)

    train(Watched(), np.arange(1000), replace(config, batch_size=2000))
    assert np.mean(starts[:5]) == pytest.approx(1000 * 2 / 3, abs=15)  # (r + 1) / (r + 2) of the text
    assert starts[9] == pytest.approx(1000 * 6 / 7, abs=15)


def test_compiled_training_gives_nearly_the_same_losses(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    losses = [train(new_net(), TOKENS, changed(n_steps=4, compile=compiled)).losses for compiled in (False, True)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_muon_in_bfloat16_moves_in_nearly_the_same_direction():
    nets = [new_net() for _ in range(2)]
    for net, precision in zip(nets, ("float32", "bfloat16"), strict=True):
        train(net, TOKENS, changed(muon_precision=precision))
    assert not torch.equal(weights(nets[0]), weights(nets[1]))
    moved = [weights(net) - weights(new_net()) for net in nets]
    assert torch.cosine_similarity(*moved, dim=0) > 0.9


def test_rows_of_windows_go_on_where_the_last_one_stopped():
    config, data, windows = changed(batch_size=300, block_size=3, carry=4), torch.arange(30), []
    for at in range(4):
        torch.manual_seed(7)
        windows.append(draw_batch(data, config, at)[0])
    row = torch.cat(windows, dim=1)  # (B, carry * T)
    assert (row[:, 1:] == row[:, :-1] + 1).all()
    assert row.min() == 0  # both ends of the text are reached; the last token is a target only
    assert row.max() == 28


def test_a_carried_state_starts_empty_in_each_row_and_no_gradient_goes_through_it():
    net, states = RecurrentLM(7, 16, 16), []
    step = net.step

    def watched(idx, state):
        states.append(state)
        return step(idx, state)

    net.step = watched
    train(net, TOKENS, changed(n_steps=7, carry=3))
    assert [state is None for state in states] == [True, False, False, True, False, False, True]
    for h, c in (state for state in states if state is not None):
        assert h.grad_fn is None
        assert c.grad_fn is None
        assert (h != 0).any()


def test_a_carried_state_knows_what_stands_before_the_window():
    # 0 0 0 ... or 1 1 1 ... after a first token 2 or 3 that no later window sees
    rows = np.random.default_rng(0).integers(0, 2, 400)
    tokens = np.concatenate([[2 + row, *[row] * 2, 4, row] for row in rows])
    losses = {}
    for carry in (1, 50):
        set_seed(0)
        config = changed(n_steps=300, batch_size=16, block_size=1, carry=carry, learning_rate=0.02)
        losses[carry] = np.mean(train(RecurrentLM(7, 16, 16, cell="gru"), tokens, config).losses[-50:])
    # of 5 tokens, one is never known (ln 2); with one token of context that after 4 is not known either
    assert losses[50] < 0.75 * losses[1]


def test_documents_are_joined_after_their_start():
    tokens = join_documents(ByteTokenizer(), ["ab", "", "c"], start_token=9)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [9, 97, 98, 9, 9, 99]


def test_evaluate_is_called_on_time_and_training_goes_on_in_training_mode():
    net = new_net()
    modes = []

    def evaluate() -> float:
        modes.append(net.training)
        return float(len(modes))

    history = train(net, TOKENS, changed(eval_every=5), evaluate=evaluate)
    assert history.evaluations == [(5, 1.0), (10, 2.0), (12, 3.0)]
    assert modes == [True] * 3
    assert not net.training


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_bfloat16_trains_to_nearly_the_same_loss(kind):
    losses = []
    for precision in ("float32", "bfloat16"):
        net = new_net() if kind == "transformer" else RecurrentLM(7, 16, 16)
        set_seed(0)
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
        losses.append(train(net, TOKENS, changed(precision=precision)).losses)
    assert losses[0] != losses[1]
    assert losses[0][-1] == pytest.approx(losses[1][-1], abs=0.1)


def test_auto_precision_follows_the_measurement(monkeypatch):
    seen = []
    net = new_net()
    net.register_forward_hook(lambda module, args, logits: seen.append(logits.dtype))
    for fast in (True, False):
        monkeypatch.setattr(training, "bfloat16_is_fast", lambda device, fast=fast: fast)
        train(net, TOKENS, changed(n_steps=1, precision="auto"))
    assert seen == [torch.bfloat16, torch.float32]


def test_quiet_without_a_terminal(capfd, monkeypatch):
    monkeypatch.delenv("LMSURVEY_QUIET", raising=False)
    train(new_net(), TOKENS, CONFIG)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("LMSURVEY_QUIET", "1")
    train(new_net(), TOKENS, CONFIG)
    out = capfd.readouterr()
    assert out.out == out.err == ""


def test_progress_is_drawn_in_a_terminal(capsys, monkeypatch):
    monkeypatch.delenv("LMSURVEY_QUIET", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(training.progress(range(3), "training")) == [0, 1, 2]
    assert "training" in capsys.readouterr().err


def test_seed_seeds_all_three():
    draws = []
    for _ in range(2):
        set_seed(11)
        draws.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "optimizer: 'adam'; allowed: adamw, muon, sgd"),
        ({"precision": "fp8"}, "precision: 'fp8'; allowed: auto, float32, bfloat16, float16"),
        ({"accumulate": 3}, "accumulate: 3; allowed: a divisor of batch_size = 4"),
        ({"accumulate": 2, "carry": 2}, "accumulate: 2; allowed: .* and 1 where carry is above 1"),
        ({"n_steps": 0}, "n_steps: 0; allowed: 1 or more"),
        ({"batch_size": -1}, "batch_size: -1; allowed: 1 or more"),
        ({"decay": 1.5}, "decay: 1.5; allowed: 0 to 1"),
        ({"carry": 0}, "carry: 0; allowed: 1 or more"),
    ],
)
def test_bad_configuration(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(**changes)


def test_too_little_text():
    with pytest.raises(ValueError, match="tokens: 8; allowed: more than block_size = 8"):
        train(new_net(), TOKENS[:8], CONFIG)
    with pytest.raises(ValueError, match=r"tokens: 16; allowed: more than carry \* block_size = 16"):
        train(RecurrentLM(7, 16, 16), TOKENS[:16], changed(carry=2))


def test_a_state_is_carried_only_where_it_can_be(tmp_path):
    message = "carry: 2; allowed: 1 with a checkpoint or a network without `step`"
    with pytest.raises(ValueError, match=message):
        train(nn.Embedding(7, 7), TOKENS, changed(carry=2))
    with pytest.raises(ValueError, match=message):
        train(RecurrentLM(7, 16, 16), TOKENS, changed(carry=2), checkpoint=tmp_path / "run.safetensors")


def test_another_draw_gives_other_targets_and_a_break_changes_nothing(tmp_path):
    """Copying is learned with -100 at all but one position; in two runs as in one."""

    def draw(data, config, at):
        x, _ = draw_batch(data, config, at)
        y = torch.full_like(x, -100)
        y[:, 3] = x[:, 3]
        return x, y

    nets = [new_net() for _ in range(3)]
    config = changed(n_steps=60, learning_rate=0.02)
    losses = train(nets[0], TOKENS, config, draw=draw).losses
    assert losses[0] > 1.5
    assert losses[-1] < 0.2
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(nets[1], TOKENS, config, draw=interrupted(draw, 30), checkpoint=path, save_every=10)
    train(nets[2], TOKENS, config, draw=draw, checkpoint=path)
    assert torch.equal(weights(nets[0]), weights(nets[2]))


def interrupted(draw, n_steps: int):
    """The same draws, and Ctrl-C after `n_steps` of them."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) > n_steps:
            raise KeyboardInterrupt
        return draw(*args)

    return call
