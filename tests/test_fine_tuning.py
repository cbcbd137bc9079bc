"""The task is what the chapter says, fine-tuning learns and leaves the network alone, and the probe is the minimum."""

import numpy as np
import pytest
import torch

from lmsurvey_code import fine_tuning
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.fine_tuning import MASK, PAD, START, bags_of_words, century_task, fine_tune, linear_probe
from lmsurvey_code.masked import Encoder
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


def test_the_bytes_of_the_special_tokens_are_free():
    free = {chr(START), chr(MASK), chr(PAD)}
    assert len(free) == 3
    assert not any(free & set(document.text) for document in load_corpus().documents)


@pytest.mark.parametrize("causal", [True, False])
def test_fine_tuning_learns_and_leaves_the_network_as_it_is(causal):
    set_seed(0)
    net = Transformer(TransformerConfig(12, 8, n_layer=1, n_head=2, n_embd=16, causal=causal))
    encoder = Encoder(net, lambda text: [int(letter, 36) for letter in text], str, pad_token=0)
    before = [p.clone() for p in net.parameters()]
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("23456789ab"), rng.integers(3, 9))) for _ in range(200)]
    labels = np.array([int(max(text) >= "a") for text in texts])
    model = fine_tune(encoder, texts, labels, n_steps=300, learning_rate=1e-2)
    assert (model.predict(texts) == labels).mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    again = fine_tune(encoder, texts, labels, n_steps=300, learning_rate=1e-2)
    assert np.array_equal(model.predict(texts), again.predict(texts))
    other = fine_tune(encoder, texts, labels, n_steps=300, learning_rate=1e-2, seed=1)
    assert not torch.equal(model.out.weight, other.out.weight)


def test_fine_tuning_draws_each_text_with_its_own_label(monkeypatch):
    seen = []
    monkeypatch.setattr(
        fine_tuning, "train", lambda model, rows, config, draw: seen.append(draw(torch.arange(len(rows)), config, 0))
    )
    net = Transformer(TransformerConfig(12, 8, n_layer=1, n_head=2, n_embd=16, causal=False))
    fine_tune(Encoder(net, lambda text: [int(text)], str, pad_token=0), [str(i) for i in range(9)], list(range(9)))
    idx, y = seen[0]
    assert idx.shape == y.shape == (16, 1)
    assert torch.equal(idx, y)
    assert len(set(y.flatten().tolist())) > 4


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


def test_more_labels_help_a_bag_of_words():
    train, valid = (century_task()[name] for name in ("train", "valid"))
    shares = []
    for n in (8, 512):
        x, x_valid = bags_of_words(train.texts[:n], valid.texts)
        w, b = linear_probe(x, train.labels[:n])
        shares.append(((x_valid @ w + b).argmax(1) == valid.labels).mean())
    assert shares[0] < 0.66 < shares[1] < 0.9
