"""The task is what the chapter says, fine-tuning learns and leaves the network alone, and the probe is the minimum."""

import numpy as np
import pytest
import torch

from lmsurvey_code import fine_tuning
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.fine_tuning import (
    MASK,
    START,
    bags_of_words,
    century_task,
    fine_tune,
    learn_and_test,
    linear_probe,
    pretrained,
)
from lmsurvey_code.training import set_seed
from lmsurvey_code.transformer import Transformer, TransformerConfig


def test_the_task_is_balanced_and_its_parts_share_no_address():
    task = century_task()
    assert {name: len(part.texts) for name, part in task.items()} == {"train": 4096, "valid": 400, "test": 400}
    for part in task.values():
        assert part.labels.mean() == 0.5
        assert np.array_equal(part.labels, part.years >= 1900)
        assert all(len(text.split()) == fine_tuning.N_WORDS for text in part.texts)
        assert 0.3 < part.labels[: len(part.labels) // 2].mean() < 0.7  # in random order
    years = [set(part.years) for part in task.values()]
    assert all(a.isdisjoint(b) for a, b in zip(years, [*years[1:], years[0]], strict=True))
    assert not set(task["train"].texts) & set(task["test"].texts)


def test_no_text_of_the_test_is_read_in_pre_training(monkeypatch):
    seen = []
    monkeypatch.setattr(fine_tuning, "join_documents", lambda tokenizer, texts, start: seen.extend(texts))
    monkeypatch.setattr(fine_tuning, "small_tokenizer", lambda: None)
    fine_tuning.unlabelled_tokens()
    years = {document.year for document in load_corpus().documents if document.text in set(seen)}
    assert 130 < len(seen) < 160
    assert years.isdisjoint(century_task()["test"].years)
    assert years.isdisjoint(century_task()["valid"].years)


def test_the_bytes_of_mask_and_start_are_free():
    free = {chr(START), chr(MASK)}
    assert not any(free & set(document.text) for document in load_corpus().documents)


@pytest.mark.parametrize("causal", [True, False])
def test_fine_tuning_learns_and_leaves_the_network_as_it_is(causal):
    set_seed(0)
    net = Transformer(TransformerConfig(12, 8, n_layer=1, n_head=2, n_embd=16, causal=causal))
    before = [p.clone() for p in net.parameters()]
    rng = np.random.default_rng(0)
    rows = [rng.integers(2, 12, rng.integers(3, 9)).tolist() for _ in range(200)]
    labels = np.array([int(max(row) >= 10) for row in rows])
    model = fine_tune(net, rows, labels, n_steps=300, learning_rate=1e-2)
    assert (model.predict(rows) == labels).mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    again = fine_tune(net, rows, labels, n_steps=300, learning_rate=1e-2)
    assert np.array_equal(model.predict(rows), again.predict(rows))
    with torch.inference_mode():  # a text gets the same logits in every batch
        one = [model(*fine_tuning.pad([row]))[0] for row in rows[:9]]
        torch.testing.assert_close(model(*fine_tuning.pad(rows[:9])), torch.stack(one), atol=1e-5, rtol=1e-4)


def test_the_probe_is_where_the_gradient_is_zero():
    rng = np.random.default_rng(0)
    x, labels, penalty = rng.normal(size=(60, 5)), rng.integers(3, size=60), 2.0
    w, b = linear_probe(x, labels, penalty)
    p = np.exp(x @ w + b)
    p /= p.sum(1, keepdims=True)
    error = p - np.eye(3)[labels]  # d loss / d logits
    np.testing.assert_allclose(x.T @ error + penalty * w, 0, atol=1e-3)
    np.testing.assert_allclose(error.sum(0), 0, atol=1e-3)


def test_bags_of_words_by_hand():
    x, other = bags_of_words(["The cat.", "the dog, the DOG"], ["a cat-dog"])
    assert x.tolist() == [[1, 0, 1], [0, 1, 1]]  # cat, dog, the
    assert other.tolist() == [[1, 1, 0]]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="method: 'magic'; allowed: bag of words, from scratch"):
        learn_and_test("magic", 8, 0)
    with pytest.raises(ValueError, match="kind: 'magic'; allowed: nothing, causal, masked"):
        pretrained("magic")


def test_more_labels_help_a_bag_of_words():
    few, many = (learn_and_test("bag of words", n, 0, on="valid").mean() for n in (8, 512))
    assert few < 0.66 < many < 0.9
