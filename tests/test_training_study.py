"""The runs of the chapter Training: schedules, first weights, gradient lengths, recomputation, noise and its cures."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code import training_study
from lmsurvey_code.training import set_seed, train
from lmsurvey_code.training_study import (
    BAD,
    BASE,
    Lowered,
    Scheduled,
    gradient_lengths,
    spike_run,
    start_weights,
    with_recomputation,
)
from lmsurvey_code.transformer import Transformer, TransformerConfig

TOKENS = torch.arange(400) % 50


def new_net(n_layer: int = 2) -> Transformer:
    set_seed(0)
    return Transformer(TransformerConfig(50, 16, n_layer=n_layer, n_head=2, n_embd=32))


def test_schedules_have_the_values_of_their_formulas():
    config = Scheduled(100, 1, 1, warmup=0, shape="cosine", floor=0.1)
    assert [config.learning_rate_factor(step) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    assert config.learning_rate_factor(25) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert replace(config, warmup=9).learning_rate_factor(4) == pytest.approx(0.5)
    stable = Scheduled(100, 1, 1, warmup=0, decay=0.2)
    assert [stable.learning_rate_factor(step) for step in (0, 79, 90)] == pytest.approx([1, 1, 0.5])
    base, lowered = (cls(**vars(BASE)).learning_rate_factor for cls in (Scheduled, Lowered))
    assert lowered(BAD[0] - 1) == base(BAD[0] - 1)
    assert lowered(BAD[0]) == pytest.approx(base(BAD[0]) / 3)


@pytest.mark.parametrize("changes", [{"shape": "square"}, {"floor": 1.5}, {"optimizer": "adam"}])
def test_a_value_that_is_not_allowed_is_named(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))}: .*; allowed: "):
        Scheduled(10, 1, 1, **changes)


def test_first_weights_have_their_spread():
    def spread(kind: str) -> tuple[float, float, float]:
        net = start_weights(new_net(), kind)
        block = net.blocks[1]
        return tuple(float(m.weight.std()) for m in (net.embedding, block.mlp.up, block.mlp.down))

    assert spread("zero") == pytest.approx((0.02, 0.02, 0), rel=0.1)
    assert spread("gpt-2") == pytest.approx((0.02, 0.02, 0.01), rel=0.1)  # two layers, four parts
    assert spread("equal") == pytest.approx((0.02, 0.02, 0.02), rel=0.1)
    assert spread("large") == pytest.approx((0.2, 0.2, 0.2), rel=0.1)
    assert spread("pytorch")[0] == pytest.approx(1, rel=0.1)
    with pytest.raises(ValueError, match="kind: 'xavier'; allowed: zero, "):
        start_weights(new_net(), "xavier")
    with pytest.raises(ValueError, match="cure: 'pray'; allowed: none, skip, lower"):
        spike_run("pray")


def test_lengths_are_those_before_clipping(monkeypatch):
    net, seen, clip = new_net(), [], nn.utils.clip_grad_norm_

    def watched(parameters, longest):
        seen.append(float(clip(parameters, longest)))

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    lengths = gradient_lengths(net)
    train(net, TOKENS, Scheduled(5, 4, 16, grad_clip=0.1, precision="float32"))
    assert lengths() == pytest.approx(seen, rel=1e-4)


def test_recomputation_gives_the_same_gradient():
    net = start_weights(new_net(), "large")
    x, y = TOKENS[:64].view(4, 16), TOKENS[1:65].view(4, 16)
    gradients = []
    for network in (net, with_recomputation(net)):
        F.cross_entropy(network(x).flatten(0, 1), y.flatten()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(*gradients)


def test_going_back_leaves_no_trace_of_the_noise(monkeypatch):
    """With a small network: all losses up to the noise are equal, and only the run without a cure reads noise."""
    config = replace(BASE, block_size=16, n_steps=300, precision="float32", recency=0)
    monkeypatch.setattr(training_study, "BASE", config)
    monkeypatch.setattr(training_study, "TRANSFORMER", TransformerConfig(50, 16))
    monkeypatch.setattr(training_study, "small_transformer", lambda seed=0: new_net(1))
    monkeypatch.setattr(training_study, "train_tokens", lambda: TOKENS)
    monkeypatch.setattr(training_study, "bits_on_valid", lambda net: 0.0)
    runs = {cure: spike_run(cure) for cure in ("none", "skip", "lower")} | {"calm": spike_run("none", bad=False)}
    for run in runs.values():
        assert run["losses"][: BAD[0]] == runs["calm"]["losses"][: BAD[0]]
        assert len(run["losses"]) == len(run["lengths"]) == 300
    for cure in ("none", "lower"):
        assert min(runs[cure]["losses"][BAD[0] : BAD[-1]]) > 2
    for cure in ("skip", "calm"):
        assert max(runs[cure]["losses"][BAD[0] :]) < 1.5
