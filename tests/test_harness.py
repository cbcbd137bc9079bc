"""Asking a model: shared reading gives what plain reading gives, files are checked by line, and nothing is asked twice.

The slow test compares with lm-evaluation-harness, on the packaged model read by transformers (about a minute).
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmsurvey_code import harness
from lmsurvey_code.harness import (
    Answer,
    EvalTask,
    Item,
    ask,
    choice_log_probs,
    chosen,
    fingerprint,
    load_task_file,
    pair_tokens,
    read_answers,
    right,
)
from lmsurvey_code.language_model import continuation_log_prob
from lmsurvey_code.llm import GGUF_FILE, SMOLLM2, open_llm
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.tokenizers import ByteTokenizer
from lmsurvey_code.training import set_seed
from lmsurvey_code.transformer import Transformer, TransformerConfig


def write_task_file(task, path):
    """The items of a task as a file that `load_task_file` reads."""
    rows = [{"id": i.id, "context": i.context, "choices": i.choices, "answer": i.answer} for i in task.items]
    if not task.is_choice:
        rows = [{"id": i.id, "prompt": i.context, "target": i.target} for i in task.items]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def model():
    set_seed(0)
    net = Transformer(TransformerConfig(vocab_size=256, block_size=64, n_layer=2, n_head=4, n_embd=32, n_kv_head=2))
    for p in net.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return NeuralLM(net, ByteTokenizer(), 64, start_token=0)


CHOICES = EvalTask(
    "choices",
    (
        Item("a", "The same beginning, then one", (" end", " other end", "x"), 1),
        Item("b", "The same beginning, then two", (" end", " y"), 0),
        Item("empty", "", (" yes", "no way"), 0),
        Item("spaces", "  ", (" yes", "no"), 1),
        Item("ends with a space", "one ", ("two", "three four"), 1),
        Item("longer than the window", "word " * 30, (" a", " a much longer answer than the other one"), 1),
    ),
)
TEXTS = EvalTask("texts", tuple(Item(str(i), "abc" * i, target="x") for i in (1, 2, 2, 30)), 8)


def plain_values(model, item):
    """Each choice after its context, one token at a time, by the chain rule."""
    found = []
    for choice in item.choices:
        context, tokens = pair_tokens(model, item.context, choice)
        total, read = 0.0, list(context)
        for token in tokens:
            logits = model.net(torch.tensor([read]))[0, -1]
            total += float(logits.double().log_softmax(-1)[token])
            read.append(token)
        found.append(total)
    return found


@pytest.mark.parametrize("rows", [1, 32])
def test_shared_contexts_give_the_chain_rule(model, rows, monkeypatch):
    monkeypatch.setattr(harness, "BATCH_ROWS", rows)
    with torch.inference_mode():
        wanted = [plain_values(model, item) for item in CHOICES.items]
    for i, found, _ in choice_log_probs(model, CHOICES.items):
        np.testing.assert_allclose(found, wanted[i], atol=1e-4)
    same_start = [replace(item, context=f"The same {item.context}") for item in CHOICES.items[:2]]
    for i, found, _ in choice_log_probs(model, same_start):
        with torch.inference_mode():
            np.testing.assert_allclose(found, plain_values(model, same_start[i]), atol=1e-4)


def test_another_network_is_read_plainly(model):
    class Wrapped(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, idx):
            return self.net(idx)

        def step(self, idx, state):
            return self.net.step(idx, state)

    other = NeuralLM(Wrapped(model.net), ByteTokenizer(), 64, start_token=0)
    for task in (CHOICES, TEXTS):
        for a, b in zip(ask(model, task), ask(other, task), strict=True):
            np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)
            assert (a.text, a.n_read, a.n_written) == (b.text, b.n_read, b.n_written)


def test_an_answer_with_an_empty_context_costs_what_the_book_charges(model):
    item = CHOICES.items[2]
    found = next(choice_log_probs(model, [item]))[1]
    np.testing.assert_allclose(found, [continuation_log_prob(model, "", choice) for choice in item.choices], atol=1e-4)


def test_spaces_at_the_end_of_a_context_go_to_the_answer(model):
    assert [bytes(tokens) for tokens in pair_tokens(model, "one ", "two")] == [b"one", b" two"]
    assert [bytes(tokens) for tokens in pair_tokens(model, "one", " two")] == [b"one", b" two"]
    assert [bytes(tokens) for tokens in pair_tokens(model, " ", "two")] == [b"\0", b" two"]


def test_what_is_longer_than_the_window_loses_its_beginning(model):
    context, tokens = pair_tokens(model, "x" * 100 + "end", " abc")
    assert (bytes(context), bytes(tokens)) == (b"x" * 58 + b"end", b" abc")  # 64 are read, and not the last one
    with pytest.raises(ValueError, match=r"choices: .* has 70 tokens; allowed: 1 to 64"):
        pair_tokens(model, "a", "y" * 70)


def test_greedy_texts_are_the_most_likely_tokens(model):
    def slow(prompt, n):
        tokens = model.tokenizer.encode(prompt)[-(64 - n) :]
        for _ in range(n):
            tokens.append(int(model.net(torch.tensor([tokens]))[0, -1].argmax()))
        return model.tokenizer.decode(tokens[-n:])

    with torch.inference_mode():
        wanted = [slow(item.context, 8).split("\n")[0] for item in TEXTS.items]
    assert [answer.text for answer in ask(model, TEXTS)] == wanted
    mark = wanted[0][2:3]
    assert ask(model, replace(TEXTS, stop=(mark,)))[0].text == wanted[0].split(mark)[0]
    with pytest.raises(ValueError, match="max_new_tokens: 64; allowed: 1 to block_size - 1 = 63"):
        ask(model, replace(TEXTS, max_new_tokens=64))


def test_a_text_ends_at_the_end_token(model):
    first = next(harness.greedy_texts(model, ["abc"], 1))[1]
    model.end_token = model.tokenizer.encode(first)[0]
    assert list(harness.greedy_texts(model, ["abc"], 8)) == [(0, "", 3, 0)]


# ---- judging ----


def test_chosen_by_the_sum_or_per_character():
    task = EvalTask("t", (Item("a", "q", (" a", " abcd"), 1),))
    answers = [Answer("a", (-2.0, -3.0))]
    assert (chosen(task, answers), chosen(task, answers, normalised=True)) == ([0], [1])
    assert (right(task, answers).tolist(), right(task, answers, normalised=True).tolist()) == ([0.0], [1.0])
    assert right(TEXTS, [Answer(str(i), text=text) for i, text in enumerate((" X.", "x", "y", "x x"))]).tolist() == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]


# ---- the cache ----


def test_an_interrupted_run_goes_on_without_asking_again(model, tmp_path, monkeypatch):
    cache, asked = tmp_path / "new" / "answers.jsonl", []

    def stop(done, n):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(model, CHOICES, cache, stop)
    with cache.open("a") as file:
        file.write('{"key": "half of a li')  # as if the process had been killed while it wrote
    real = harness.choice_log_probs
    monkeypatch.setattr(harness, "choice_log_probs", lambda m, items: asked.extend(items) or real(m, items))
    answers = ask(model, CHOICES, cache)
    assert len(asked) == len(CHOICES.items) - 3
    assert [a.id for a in answers] == [item.id for item in CHOICES.items]
    for a, item in zip(answers, CHOICES.items, strict=True):
        with torch.inference_mode():
            np.testing.assert_allclose(a.log_probs, plain_values(model, item), atol=1e-4)
    assert ask(model, CHOICES, cache) == answers
    assert len(asked) == len(CHOICES.items) - 3
    assert len(cache.read_text().splitlines()) == len(CHOICES.items)


def test_another_model_window_or_question_is_asked_again(model):
    key, item = fingerprint(model), CHOICES.items[0]
    before = harness.request_key(key, CHOICES, item)
    assert harness.request_key(key, CHOICES, replace(item, id="other", answer=0)) == before
    assert harness.request_key(key, CHOICES, replace(item, context="Other")) != before
    assert harness.request_key(key, CHOICES, replace(item, choices=(" end", " other end"))) != before
    text = harness.request_key(key, TEXTS, TEXTS.items[0])
    assert harness.request_key(key, replace(TEXTS, max_new_tokens=9), TEXTS.items[0]) != text
    assert harness.request_key(key, replace(TEXTS, stop=(".",)), TEXTS.items[0]) != text
    model.block_size = 32
    assert fingerprint(model) != key
    model.block_size = 64
    assert fingerprint(model) == key
    with torch.no_grad():
        model.net.blocks[1].mlp.down.weight += 0.01
    assert fingerprint(model) != key


def test_a_broken_cache_says_its_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{json.dumps({"key": "k"} | {"id": "a", "log_probs": []})}\n{{"key": 1}}\n')
    with pytest.raises(ValueError, match=r"answers.jsonl, line 2: not an answer"):
        read_answers(path)


def test_a_model_that_only_writes_is_asked_texts_alone():
    class Writer:
        def generate(self, prompt, *, max_new_tokens=64, temperature=None):
            return f"{prompt[:2]}!\nmore"

    assert [a.text for a in ask(Writer(), TEXTS)] == ["ab!"] * 4
    with pytest.raises(ValueError, match="gives no probabilities, so it cannot be asked 'choices', with choices"):
        ask(Writer(), CHOICES)


# ---- files ----

GOOD = '{"id": "a", "context": "Snow is", "choices": [" white", " red"], "answer": " white"}\n'


def test_files_are_read_as_written(tmp_path):
    for task in (CHOICES, TEXTS):
        task = replace(task, items=tuple(replace(item, id=str(i)) for i, item in enumerate(task.items)))
        write_task_file(task, tmp_path / f"{task.name}.jsonl")
        assert load_task_file(tmp_path / f"{task.name}.jsonl").items == task.items
    (tmp_path / "one.jsonl").write_text(GOOD + "\n")
    assert load_task_file(tmp_path / "one.jsonl").items == (Item("a", "Snow is", (" white", " red"), 0),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "context"', "not JSON: .* at column"),
        ("[1]", "fields: list; allowed: id, context, choices, answer; or id, prompt, target"),
        ('{"id": "b", "context": "x"}', "fields: context, id; allowed"),
        (GOOD, "id: 'a' is that of line 1 too"),
        ('{"id": 7, "context": "x", "choices": ["a", "b"], "answer": 0}', "id: 7; allowed: a string"),
        ('{"id": "b", "context": "x", "choices": ["a"], "answer": 0}', "choices: .*; allowed: two or more"),
        (
            '{"id": "b", "context": "x", "choices": ["a", "a"], "answer": 0}',
            "choices: .*; allowed: two or more, all different",
        ),
        (
            '{"id": "b", "context": "x", "choices": ["a", ""], "answer": 0}',
            "choices: .*; allowed: a list of strings, none empty",
        ),
        (
            '{"id": "b", "context": "x", "choices": "ab", "answer": 0}',
            "choices: .*; allowed: a list of strings, none empty",
        ),
        ('{"id": "b", "context": "x", "choices": ["a", "b"], "answer": "c"}', "answer: 'c' is not among the choices"),
        ('{"id": "b", "context": "x", "choices": ["a", "b"], "answer": 2}', "answer: 2; allowed: 0 to 1"),
        ('{"id": "b", "context": "x", "choices": ["a", "b"], "answer": -1}', "answer: -1; allowed: 0 to 1"),
        ('{"id": "b", "context": "x", "choices": ["a", "b"], "answer": true}', "answer: True; allowed: 0 to 1"),
        ('{"id": "b", "prompt": "x", "target": "y"}', "an item of another kind"),
        ('{"id": "b", "prompt": "x", "target": " "}', "prompt, target: one is empty"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "task.jsonl"
    path.write_text(GOOD + line, encoding="utf-8")
    with pytest.raises(ValueError, match=f"task.jsonl, line 2: {message}"):
        load_task_file(path)


def test_a_wrong_encoding_an_empty_and_a_missing_file(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_bytes(GOOD.encode() + '{"id": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="line 2: byte 0xe9 is not UTF-8"):
        load_task_file(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no item"):
        load_task_file(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_task_file(tmp_path / "other.jsonl")


# ---- beside lm-evaluation-harness ----


def lm_eval_samples(hf, tokenizer, task, file, window, start_token):
    """What lm-evaluation-harness finds for a task file: its samples, by id."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    config = {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "target_delimiter": "",
    }
    if task.is_choice:
        config |= {"output_type": "multiple_choice", "doc_to_text": "context", "doc_to_choice": "choices"}
        config |= {"doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
    else:
        settings = {"until": list(task.stop), "max_gen_toks": task.max_new_tokens, "do_sample": False}
        config |= {"output_type": "generate_until", "doc_to_text": "prompt", "doc_to_target": "target"}
        config |= {"generation_kwargs": settings, "metric_list": [{"metric": "exact_match"}]}
    lm = HFLM(hf, tokenizer=tokenizer, max_length=window, batch_size=8, device="cpu", prefix_token_id=start_token)
    found = lm_eval.simple_evaluate(lm, tasks=[ConfigurableTask(config=config)], bootstrap_iters=0, log_samples=True)
    return {sample["doc"]["id"]: sample for sample in found["samples"][task.name]}


@pytest.mark.slow
def test_log_probs_predictions_and_texts_of_lm_eval(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from transformers import AutoModelForCausalLM

    from lmsurvey_code.suite import load_suite

    llm = open_llm("smollm2-135m", quiet=True)
    hf = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_FILE, dtype=torch.float32)
    suite = load_suite()
    items = (*suite["knowledge"].items[::14], *suite["reasoning"].items[::10], *CHOICES.items)
    items = [item for item in items if item.context != "  "]  # on which lm-evaluation-harness fails
    choices = EvalTask("choices", tuple(replace(item, id=f"item {i}") for i, item in enumerate(items)))
    items = (*suite["tools"].items[::20], *suite["language generation"].items[::20])
    texts = EvalTask("texts", tuple(replace(item, id=f"item {i}") for i, item in enumerate(items)), 16)
    for task, window in ((choices, 2048), (choices, 48), (texts, 2048), (texts, 64)):
        llm.block_size = window
        write_task_file(task, tmp_path / f"{task.name}.jsonl")
        samples = lm_eval_samples(hf, llm.tokenizer.hf, task, tmp_path / f"{task.name}.jsonl", window, llm.start_token)
        answers = ask(llm, task)
        if not task.is_choice:
            assert [a.text for a in answers] == [samples[a.id]["filtered_resps"][0] for a in answers]
            continue
        theirs = [[value[0] for value in samples[a.id]["filtered_resps"]] for a in answers]
        for a, values in zip(answers, theirs, strict=True):
            np.testing.assert_allclose(a.log_probs, values, atol=1e-3)
        for metric, normalised in (("acc", False), ("acc_norm", True)):
            assert right(task, answers, normalised).tolist() == [samples[a.id][metric] for a in answers]
        assert 0.2 < right(task, answers).mean() < 0.9
