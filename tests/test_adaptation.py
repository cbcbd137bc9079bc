"""Instruction tuning: what counts as right, what a row holds, who sees whom, and that tuning learns answers alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lmsurvey_code.adaptation import (
    IGNORED,
    UNSEEN,
    AnswersNet,
    Instruction,
    answer_loss,
    answers,
    example,
    holds_answer,
    in_passes,
    is_right,
    load_instructions,
    own_example_mask,
    pack,
    splits,
    trainable_copy,
    tune,
)
from lmsurvey_code.llm import open_llm
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.training import TrainConfig, set_seed
from lmsurvey_code.transformer import Transformer, TransformerConfig

PAIRS = [Instruction("t/copy", "rule", "Say", word, word, "exact") for word in ("red", "blue", "green", "gray")]


def small_model(seed: int = 0) -> NeuralLM:
    set_seed(seed)
    config = TransformerConfig(256, block_size=128, n_layer=2, n_head=2, n_embd=32)
    net = Transformer(config)
    for p in net.parameters():  # blocks that do nothing would hide a wrong mask
        torch.nn.init.normal_(p, std=0.1)
    return NeuralLM(net, ByteTokenizer(), 128)


def item(output: str, check: str = "exact", kind: str = "t/t") -> Instruction:
    return Instruction(kind, "rule", "Do", "", output, check)


@pytest.fixture(scope="module")
def llm():
    return open_llm("smollm2-135m", quiet=True)


# ---- pairs ----


def test_splits_share_no_pair_and_unseen_clusters_are_whole():
    parts = splits()
    assert sum(map(len, parts.values())) == len(load_instructions()) == len(set().union(*parts.values()))
    for name, clusters in UNSEEN.items():
        assert {i.cluster for i in parts[name]} == set(clusters)
        assert not {i.cluster for i in parts["train"] + parts["items"]} & set(clusters)
    assert {i.kind for i in parts["items"]} == {i.kind for i in parts["train"]}
    assert {i.check for i in parts["test"]} == {"exact", "number"}
    assert [i.kind for i in parts["train"]] != sorted(i.kind for i in parts["train"])


@pytest.mark.parametrize(
    ("pair", "answer", "right", "inside"),
    [
        (item("yes"), " Yes.", True, True),
        (item("yes"), '"yes"', True, True),
        (item("yes"), "Yes, it is.", False, True),
        (item("yes"), "yesterday", False, False),
        (item("1200", "number"), "1,200", True, True),
        (item("1200", "number"), "It is 1,200.", False, True),
        (item("12", "number"), "112", False, False),
        (item("ANNA", kind="format/uppercase"), "Anna", False, False),
        (item("ANNA", kind="format/uppercase"), "ANNA", True, True),
        (item("a.b"), "axb", False, False),
        (item("yes"), "", False, False),
    ],
)
def test_right_is_the_answer_alone_and_held_is_the_answer_anywhere(pair, answer, right, inside):
    assert is_right(pair, answer) is right
    assert holds_answer(pair, answer) is inside


def test_every_answer_of_the_set_is_right_for_itself():
    assert all(is_right(i, i.output) and holds_answer(i, i.output) for i in splits()["test"])


def test_an_open_answer_is_not_judged():
    with pytest.raises(ValueError, match="item"):
        is_right(item("A poem.", "open"), "A poem.")


# ---- rows ----


def test_only_the_answer_and_the_end_are_targets():
    tokens, targets = example(small_model(), "Say\nred", "red")
    assert bytes(tokens) == b"\0Say\nred\nAnswer:red"
    n_prompt = len(b"\0Say\nred\nAnswer:")
    assert targets == [IGNORED] * (n_prompt - 1) + [*b"red", 0]
    assert example(small_model(), "Say\nred", "red", on_answer=False)[1] == [*tokens[1:], 0]


def test_packing_keeps_every_example_whole():
    examples = [example(small_model(), p.question, p.output) for p in PAIRS]
    x, y = pack(examples, 48)
    assert x.shape == y.shape == (2, 48)
    assert int((y != IGNORED).sum()) == sum(len(p.output) + 1 for p in PAIRS)
    joined = bytes(x.flatten().tolist())
    assert all(bytes(tokens) in joined for tokens, _ in examples)
    for row, targets in zip(x.tolist(), y.tolist(), strict=True):  # a target is the token after it, or the end
        for t, target in enumerate(targets):
            assert target in (IGNORED, 0) or target == row[t + 1]


@pytest.mark.parametrize(("n", "block_size"), [(0, 10), (1, 5)])
def test_what_does_not_fit_is_refused(n, block_size):
    with pytest.raises(ValueError, match="allowed: 1 to block_size"):
        pack([example(small_model(), "Say", "red")] * n, block_size)


def test_a_packed_example_sees_only_itself():
    model = small_model()
    examples = [example(model, p.question, p.output) for p in PAIRS]
    x, y = pack(examples, 100)
    logits = model.net(x, own_example_mask(x))
    alone = torch.cat([model.net(torch.tensor([tokens]))[0] for tokens, _ in examples])
    assert x.shape == (1, 100)
    assert torch.allclose(logits[0, : len(alone)], alone, atol=1e-5)
    assert not torch.allclose(model.net(x)[0, : len(alone)], alone, atol=1e-2)  # without the mask
    counted = AnswersNet(model.net)(torch.stack([x, (y != IGNORED).long()], dim=1))
    assert torch.allclose(counted[0], logits[y != IGNORED], atol=1e-6)


def test_a_pass_reads_each_row_once_in_another_order():
    x = torch.arange(6)[:, None].expand(6, 3)
    draw, config = in_passes(x, x.clone()), TrainConfig(6, 2, 1)
    rows = [draw(torch.arange(7), config, step)[0][:, 0, 0].tolist() for step in range(6)]
    passes = [[r for pair in part for r in pair] for part in (rows[:3], rows[3:])]
    assert [sorted(rows) for rows in passes] == [[0, 1, 2, 3, 4, 5]] * 2
    assert passes[0] != passes[1]


# ---- tuning ----


def test_the_loss_of_a_step_is_that_of_its_answers():
    model = small_model()
    costs = []
    for p in PAIRS:
        tokens, targets = example(model, p.question, p.output)
        costs.append(F.cross_entropy(model.net(torch.tensor([tokens]))[0], torch.tensor(targets), reduction="sum"))
    by_hand = sum(costs).item() / sum(len(p.output) + 1 for p in PAIRS)
    history = tune(small_model(), PAIRS, TrainConfig(1, 1, 1, precision="float32"), block_size=128)
    assert history.losses[0] == pytest.approx(by_hand, rel=1e-5)
    assert answer_loss(model, PAIRS, 128) == pytest.approx(by_hand, rel=0.02)  # bfloat16 where that is fast


def test_tuning_learns_and_twice_the_same():
    config = TrainConfig(60, 1, 1, 0.03, warmup=2)
    models = [small_model(), small_model()]
    losses = [tune(model, PAIRS, config, block_size=128).losses for model in models]
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.2 * losses[0][0]
    assert answer_loss(models[0], PAIRS, 128) < 0.2 * losses[0][0]
    assert not models[0].net.training


def test_questions_count_where_they_are_asked_for():
    config = TrainConfig(1, 1, 1, precision="float32")
    losses = [tune(small_model(), PAIRS, config, block_size=128, on_answer=on).losses[0] for on in (True, False)]
    assert abs(losses[0] - losses[1]) > 0.01


def test_parts_of_a_batch_are_refused():
    with pytest.raises(ValueError, match="accumulate"):
        tune(small_model(), PAIRS, TrainConfig(1, 2, 1, accumulate=2), block_size=128)


def test_the_copy_of_an_llm_learns_and_the_llm_does_not(llm):
    copy = trainable_copy(llm)
    before = llm.net.blocks[0].mlp.up.weight.detach().clone()
    pairs = [replace(p, input="") for p in splits()["train"][:2]]
    tune(copy, pairs, TrainConfig(1, 1, 1, 1e-3, warmup=0), block_size=128)
    assert torch.equal(llm.net.blocks[0].mlp.up.weight, before)
    assert not torch.equal(copy.net.blocks[0].mlp.up.weight, before)
    other = SimpleNamespace(net=torch.nn.Linear(1, 1), name="other")
    with pytest.raises(ValueError, match="other runs in transformers"):
        trainable_copy(other)


def test_an_llm_is_asked_in_its_chat_format_and_stops(llm):
    tokens, targets = example(llm, "Say hello.", "Hello.")
    text = llm.tokenizer.decode(tokens[1:])
    assert (
        text == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\nHello."
    )
    assert targets[-1] == llm.end_token
    written = answers(llm, splits()["test"][:2], max_new_tokens=4)
    assert len(written) == 2
    assert all(len(llm.tokenizer.encode(text)) <= 5 for text in written)
