import numpy as np
import pytest
import torch

from lmsurvey_code.in_context import (
    SYMBOLS,
    TASKS,
    balanced,
    calibrated,
    diverse,
    label_scores,
    labels_of,
    load_labelled,
    most_similar,
    random_words,
    relabelled,
    without_heads,
)
from lmsurvey_code.language_model import continuation_log_prob
from lmsurvey_code.llm import open_llm


@pytest.fixture(scope="module")
def model():
    return open_llm("smollm2-135m", quiet=True)


# ---- tasks ----


@pytest.mark.parametrize(("name", "n_labels", "n_items"), [("sentiment", 2, 200), ("kinds", 4, 200), ("recall", 4, 0)])
def test_a_task_has_each_label_as_often_and_asks_no_demonstration(name, n_labels, n_items):
    task = load_labelled(name)
    assert len(task.demonstrations) == 80
    assert len(task.items) == n_items
    assert len(labels_of(task)) == n_labels
    for pairs in (task.demonstrations, task.items):
        counts = [sum(label == wanted for _, label in pairs) for wanted in labels_of(task)]
        assert len(set(counts)) == 1, counts
    questions = [question for question, _ in task.demonstrations + task.items]
    assert len(set(questions)) == len(questions)


def test_symbols_are_as_many_as_the_labels_and_say_nothing():
    for name, symbols in SYMBOLS.items():
        labels = labels_of(load_labelled(name))
        assert len(set(symbols)) == len(labels)
        assert not set(symbols) & set(labels)


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=f"name: 'colours'; allowed: {', '.join(TASKS)}"):
        load_labelled("colours")


# ---- demonstrations ----


def test_balanced_has_each_label_as_often_and_differs_by_seed():
    task = load_labelled("kinds")
    shown = balanced(task, 8, 1)
    assert sorted(label for _, label in shown) == sorted(labels_of(task) * 2)
    assert shown == balanced(task, 8, 1) != balanced(task, 8, 2)
    assert set(shown) <= set(task.demonstrations)
    assert balanced(task, 0) == []
    assert [label for _, label in balanced(task, 16, 0)] != sorted(label for _, label in balanced(task, 16, 0))


@pytest.mark.parametrize("k", [6, 84, -4])
def test_balanced_refuses_what_it_cannot_give(k):
    with pytest.raises(ValueError, match=f"k: {k}; allowed: multiples of 4"):
        balanced(load_labelled("kinds"), k)


def test_flipped_labels_are_all_wrong_and_random_ones_are_drawn_from_all():
    task = load_labelled("kinds")
    labels, shown = labels_of(task), task.demonstrations
    assert relabelled(shown, labels, "true") == list(shown)
    flipped = relabelled(shown, labels, "flipped")
    assert [q for q, _ in flipped] == [q for q, _ in shown]
    assert all(a != b for (_, a), (_, b) in zip(flipped, shown, strict=True))
    assert {label for _, label in flipped} == set(labels)
    drawn = relabelled(shown, labels, "random", 3)
    right = sum(a == b for a, b in zip(drawn, shown, strict=True))
    assert 8 <= right <= 32
    assert {label for _, label in drawn} == set(labels)
    assert drawn == relabelled(shown, labels, "random", 3) != relabelled(shown, labels, "random", 4)


def test_relabelled_refuses_other_words():
    with pytest.raises(ValueError, match="how: 'swapped'; allowed: true, random, flipped"):
        relabelled([], ["a", "b"], "swapped")
    with pytest.raises(ValueError, match="label 'c'; allowed: a, b"):
        relabelled([("x", "c")], ["a", "b"], "true")


def test_random_words_are_words_of_the_task_and_as_long():
    task = load_labelled("sentiment")
    known = {word for question, _ in task.demonstrations for word in question.split()}
    texts = random_words(task, 30)
    assert len(texts) == 30
    assert all(set(text.split()) <= known for text in texts)
    assert {len(text.split()) for text in texts} <= {len(question.split()) for question, _ in task.demonstrations}
    assert len(set(texts)) == 30
    assert texts == random_words(task, 30) != random_words(task, 30, seed=1)


# ---- selection ----


def on_a_circle(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_most_similar_ends_with_the_nearest():
    assert most_similar(on_a_circle(0, 80, 20, 170, 40), on_a_circle(22)[0], 3) == [0, 4, 2]


def test_diverse_takes_what_is_farthest_from_all_so_far():
    assert diverse(on_a_circle(0, 10, 175, 90, 5), 3, first=0) == [0, 2, 3]
    assert diverse(on_a_circle(0, 170, 180, 90), 3, first=0) == [0, 2, 3]  # 170 is far from 0, but near to 180
    assert diverse(on_a_circle(0, 10, 175, 90), 4, first=1)[0] == 1
    assert sorted(diverse(on_a_circle(0, 0, 0), 3)) == [0, 1, 2]  # never one twice


@pytest.mark.parametrize("k", [0, 6])
def test_selection_refuses_a_number_that_there_is_not(k):
    for select in (lambda: most_similar(np.eye(5), np.ones(5), k), lambda: diverse(np.eye(5), k)):
        with pytest.raises(ValueError, match=f"k: {k}; allowed: 1 to 5"):
            select()


# ---- scores ----


def test_scores_are_those_of_each_prompt_alone(model, monkeypatch):
    monkeypatch.setattr("lmsurvey_code.in_context.N_BATCH_TOKENS", 60)  # several batches
    task = load_labelled("kinds")
    shown = balanced(task, 4)
    prompts = [task.prompt(q, shown) for q in ("putty knife", "oak", "a grey-blue waistcoat", "owl")] + ["Word:"]
    labels = labels_of(task)
    scores = label_scores(model, prompts, labels)
    for row, prompt in zip(scores, prompts, strict=True):
        alone = [continuation_log_prob(model, prompt, f" {label}") for label in labels]
        assert row == pytest.approx(alone, abs=1e-3)


def test_scores_without_a_common_beginning(model):
    prompts = ["oak", "A hammer is a"]
    scores = label_scores(model, prompts, ["tool", "plant"])
    assert scores[1] == pytest.approx(
        [continuation_log_prob(model, prompts[1], f" {x}") for x in ("tool", "plant")], abs=1e-3
    )
    assert label_scores(model, prompts[:1], ["tool"]) == pytest.approx(scores[:1, :1], abs=1e-3)


def test_a_model_in_transformers_is_scored_too():
    from test_conformance import tiny_llm

    tiny, prompts, labels = tiny_llm(own=False), ["oak: ", "a longer one: ", "oak, elm: "], ["a", "b"]
    # Its tokens are bytes: a label with its space would be two of them, so the space is taken off.
    encode, plain = tiny.tokenizer.encode, [[f"{prompt}{label}" for label in labels] for prompt in prompts]
    tiny.tokenizer.encode = lambda text: encode(text[1:] if text[1:] in labels else text)
    scores = label_scores(tiny, prompts, labels)
    for row, texts in zip(scores, plain, strict=True):
        assert row == pytest.approx([tiny.log_probs(encode(text))[-1] for text in texts], abs=1e-4)


def test_scores_refuse_long_labels_and_long_prompts(model):
    with pytest.raises(ValueError, match=r"labels: \['very unlikely'\] are not one token each"):
        label_scores(model, ["Word: oak"], ["plant", "very unlikely"])
    with pytest.raises(ValueError, match="prompts: 1; allowed: one or more, of at most 2048 tokens"):
        label_scores(model, ["oak " * 2100], ["plant"])
    with pytest.raises(ValueError, match="prompts: 0"):
        label_scores(model, [], ["plant"])


def test_calibration_makes_an_input_that_says_nothing_say_nothing():
    bias = np.log([[0.9, 0.1]]) - 3  # the labels have a small share of all probability
    assert calibrated(bias, bias)[0, 0] == pytest.approx(calibrated(bias, bias)[0, 1])
    scores = np.log([[0.8, 0.2], [0.95, 0.05]])
    assert calibrated(scores, bias).argmax(1).tolist() == [1, 0]
    two = np.log([[0.9, 0.1], [0.5, 0.5]])  # the mean of probabilities is 0.7 and 0.3
    assert np.diff(calibrated(np.zeros((1, 2)), two))[0, 0] == pytest.approx(np.log(0.7 / 0.3))


@pytest.mark.parametrize("bias", [np.zeros((1, 3)), np.zeros((0, 2)), np.zeros(2)])
def test_calibration_refuses_other_labels(bias):
    with pytest.raises(ValueError, match=r"bias: shape .*; allowed: \(m, 2\)"):
        calibrated(np.zeros((4, 2)), bias)


# ---- heads ----


def test_without_heads_is_the_network_with_their_weights_at_zero(model):
    net, idx = model.net, torch.tensor([[model.start_token, *model.tokenizer.encode("A hammer is a tool, an oak is")]])
    heads, size = [(2, 0), (2, 4), (20, 8)], 64
    with torch.inference_mode():
        before = net(idx)
        with without_heads(net, heads):
            silent = net(idx)
        kept = {layer: net.blocks[layer].attention.out.weight.data.clone() for layer in (2, 20)}
        for layer, head in heads:
            net.blocks[layer].attention.out.weight.data[:, head * size : (head + 1) * size] = 0
        zeroed = net(idx)
        for layer, weight in kept.items():
            net.blocks[layer].attention.out.weight.data.copy_(weight)
        assert torch.allclose(silent, zeroed, atol=1e-4)
        assert not torch.allclose(silent, before, atol=0.1)
        assert torch.equal(net(idx), before)  # all heads are back


def test_heads_come_back_after_an_error_and_unknown_ones_are_named(model):
    with pytest.raises(KeyError), without_heads(model.net, [(0, 0)]):
        raise KeyError
    assert not model.net.blocks[0].attention.out._forward_pre_hooks
    with (
        pytest.raises(ValueError, match=r"heads: \(30, 0\); allowed: below \(30, 9\)"),
        without_heads(model.net, [(30, 0)]),
    ):
        pass
