"""Record the runs that take longer than a notebook may: `python tools/record.py NAME` (or `make results NAME=...`).

A run whose row is there, made by the code of today, is not repeated: an interrupted recording goes on where it stopped.
Where code changed and results should not have, `python tools/record.py NAME RUN [RUN ...]` repeats these runs; if they
agree with their rows, the rows of the same kinds stay.

one_axis            every model of the book on the texts of valid and, once, on the address of 2026
memory              three recurrent cells at equal size and equal time; training with and without carried state
prompting_labels    how sure the LLM is of each of two labels, for many prompts (chapter Prompting)
prompting_answers   what the LLM writes, for many prompts (chapter Prompting)
evaluating          windows, choices, passages and leaks (chapter Evaluating)
evaluating_years    each address: what its middle costs the LLM, and a counter that has not read it
decoding            ways of choosing the next token, compared on texts that the LLM writes (chapter Decoding)
long_run_search     what was tried before the long run (chapter The long run)
long_run            the network that trains for most of an hour, its log, and its weights (chapter The long run)
tokens              the small Transformer with other vocabularies, at equal compute (chapter Tokens)
variants            the small Transformer with one setting changed at a time (chapter Variants of the Transformer)
training            the small Transformer with one setting of its training changed at a time (chapter Training)
scaling             networks of many sizes at equal compute (chapter Scaling laws)
scaling_prediction  what the grid of `scaling` predicts for a larger run, and then that run (chapter Scaling laws)
scaling_repeated    one size, on texts of several lengths that it reads again and again (chapter Scaling laws)
data                the small Transformer on what each step of cleaning leaves, on mixtures, in orders (chapter Data)
fine_tuning         from nothing against pre-trained, by number of labels (chapter Pre-train, then fine-tune)
long_context        the network of the long run at four times its window (chapter Efficient training and inference)
parameter_efficient ways to tune few weights, on the same instructions (chapter Parameter-efficient tuning)
quantization        the long run's network and the LLM with 8 to 2 bits a weight (chapter Parameter-efficient tuning)
instruction_tuning  the packaged LLM, tuned on instructions in several ways (chapter Instruction tuning)
alignment           a reward model, best of n, DPO, PPO and GRPO on the packaged LLM (chapter Alignment)
in_context          labels that the LLM gives, by number, order, choice and labels of demonstrations, and without heads
reasoning           steps, votes, smaller questions, search, plans, and rewards (chapter Chain of thought and planning)
retrieval           answers with and without passages, with orders planted in them, and with tools (Tools and retrieval)
evaluation_card     the report card of the packaged LLM, by its command (chapter Evaluation in full)
evaluation_forms    one task in several forms and orders (chapter Evaluation in full)
evaluation_judge    the packaged LLM as a judge of two answers, in both orders (chapter Evaluation in full)
emergence           copying, modular addition and addition, measured while small networks learn them (chapter Emergence)
"""

import ast
import copy
import inspect
import json
import math
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from nbformat.v4 import new_code_cell, new_notebook

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.evaluation import bits_per_byte_interval
from lmsurvey_code.language_model import LanguageModel, score, score_documents
from lmsurvey_code.results import FOLDER, machine, record, recorded
from tools.staleness import code_hash

ROOT = Path(__file__).parent.parent
Run = Callable[[], dict[str, Any]]


def measured(model: LanguageModel) -> dict[str, Any]:
    """Bits per byte on valid and on the address of 2026, with window, stride and interval."""
    corpus = load_corpus()
    valid = score_documents(model, texts(corpus.valid))
    test = score(model, corpus.test[0].text)
    low, high = bits_per_byte_interval(test, model.tokenizer)
    return {
        "valid": round(valid.bits_per_byte, 4),
        "test": round(test.bits_per_byte, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n_tokens": len(test.tokens),
        "window": test.window,
        "stride": test.stride,
    }


def ngram(unit: str, order: int, share: float = 1.0) -> Run:
    """Modified Kneser-Ney over "words" or "characters", counted in the newest `share` of the train bytes."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.ngram import KneserNey, NgramCounts
        from lmsurvey_code.tokenizers import CharTokenizer, WordTokenizer

        train = load_corpus().train
        wanted, first = share * sum(d.n_bytes for d in train), len(train)
        while first and sum(d.n_bytes for d in train[first:]) < wanted:
            first -= 1
        read = texts(train[first:])
        tokenizer = CharTokenizer(read) if unit == "characters" else WordTokenizer(read, min_count=2)
        start = time.perf_counter()
        counts = NgramCounts(read, tokenizer, order)
        model = KneserNey(counts, modified=True)
        fit_seconds = time.perf_counter() - start
        return {
            "fit_seconds": round(fit_seconds, 1),
            "n_stored": sum(map(len, counts.keys)),
            "train_bytes": sum(d.n_bytes for d in train[first:]),
            "operations": order * sum(len(tokenizer.encode(text)) for text in read),
        } | measured(model)

    return run


def small_network(kind: str, length: int = 1, recency: float | None = None) -> Run:
    """A network of the book, trained as its chapter does; or longer, or on other windows.

    `kind` is "feed-forward", "RNN", "GRU", "LSTM" or "Transformer".
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code import recipes
        from lmsurvey_code.neural import NeuralLM
        from lmsurvey_code.training import join_documents, train

        corpus, tokenizer = load_corpus(), recipes.small_tokenizer()
        if kind == "Transformer":
            net, config = recipes.small_transformer(), recipes.TRANSFORMER_TRAINING
            window = recipes.TRANSFORMER.block_size
        elif kind == "feed-forward":
            net, config, window = recipes.small_feedforward(), recipes.FEEDFORWARD_TRAINING, None
        else:
            net, config, window = recipes.small_recurrent(kind.lower()), recipes.LSTM_TRAINING, None
        config = replace(config, n_steps=length * config.n_steps)
        if recency is not None:
            config = replace(config, recency=recency)
        tokens = join_documents(tokenizer, texts(corpus.train))
        start = time.perf_counter()
        train(net, tokens, config)
        fit_seconds = time.perf_counter() - start
        n_params, n_tokens = (
            sum(p.numel() for p in net.parameters()),
            config.n_steps * config.batch_size * config.block_size,
        )
        return {
            "fit_seconds": round(fit_seconds, 1),
            "n_params": n_params,
            "n_train_tokens": n_tokens,
            "train_bytes": round(n_tokens * sum(d.n_bytes for d in corpus.train) / len(tokens)),
            "operations": 6 * n_params * n_tokens,
            "seed": config.seed,
        } | measured(NeuralLM(net, tokenizer, window))

    return run


# ---- memory ----

EQUAL_TIME = {"rnn": 170, "gru": 210}  # steps in the time of the LSTM's 300, on one thread


def recurrent(cell: str, seed: int, n_steps: int) -> Run:
    """A recurrent network of the book after `n_steps`, and how far back it reaches."""

    def run() -> dict[str, Any]:
        import torch

        from lmsurvey_code import recipes
        from lmsurvey_code.neural import NeuralLM
        from lmsurvey_code.recurrent import cost_with_context, gradient_reach
        from lmsurvey_code.training import join_documents, train

        corpus, tokenizer = load_corpus(), recipes.small_tokenizer()
        config = replace(recipes.LSTM_TRAINING, n_steps=n_steps, seed=seed)
        net = recipes.small_recurrent(cell, seed)
        windows = torch.tensor(tokenizer.encode(corpus.valid[-1].text)[:2064]).unfold(0, 65, 1)  # (2000, 65)
        untrained = gradient_reach(net, windows[::4])
        start = time.perf_counter()
        train(net, join_documents(tokenizer, texts(corpus.train)), config)
        fit_seconds = time.perf_counter() - start
        costs = {k: round(cost_with_context(net, windows, k), 4) for k in (1, 2, 4, 8, 16, 32, 64)}
        reach = {"untrained": untrained, "trained": gradient_reach(net, windows[::4])}
        return {
            "cell": cell,
            "seed": seed,
            "n_hidden": net.recurrent.hidden_size,
            "n_params": sum(p.numel() for p in net.parameters()),
            "n_steps": n_steps,
            "fit_seconds": round(fit_seconds, 1),
            "reach": {name: [float(f"{value:.3g}") for value in values] for name, values in reach.items()},
            "cost_with_context": costs,
        } | measured(NeuralLM(net, tokenizer, None))

    return run


def carried(n_tokens: int, carry: bool, seed: int) -> Run:
    """The LSTM after 300 steps on windows of `n_tokens`; each starts empty, or with the state of the one before it.

    A step reads 512 tokens, and a state is carried for 1,024 tokens before it is emptied.
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code import recipes
        from lmsurvey_code.neural import NeuralLM
        from lmsurvey_code.training import join_documents, train

        corpus, tokenizer = load_corpus(), recipes.small_tokenizer()
        length = {"batch_size": 512 // n_tokens, "block_size": n_tokens, "carry": 1024 // n_tokens if carry else 1}
        net = recipes.small_recurrent("lstm", seed)
        tokens = join_documents(tokenizer, texts(corpus.train))
        train(net, tokens, replace(recipes.LSTM_TRAINING, n_steps=300, seed=seed, **length))
        valid = score_documents(NeuralLM(net, tokenizer, None), texts(corpus.valid))
        return {"n_tokens": n_tokens, "carry": carry, "seed": seed, "valid": round(valid.bits_per_byte, 4)}

    return run


@cache
def packaged() -> Any:
    """The LLM that comes with the book, opened once."""
    from lmsurvey_code.llm import open_llm

    return open_llm("smollm2-135m", quiet=True)


def packaged_llm() -> dict[str, Any]:
    """The LLM that comes with the book; how much it read is from the card of the model."""
    model = packaged()
    n_params, n_tokens = model.n_parameters, 2_000_000_000_000
    text = load_corpus().test[0].text
    bytes_per_token = len(text.encode()) / len(model.tokenizer.encode(text))
    cost = {"train_bytes": round(n_tokens * bytes_per_token), "operations": 6 * n_params * n_tokens}
    return {"n_params": n_params, "n_train_tokens": n_tokens} | cost | measured(model)


# ---- prompting: 200 items a row; the demonstrations are in the row, so that a chapter can repeat it ----

OPTIONS = (" positive", " negative")
WORDINGS = {
    "Review, Sentiment": ("Review: {}\nSentiment:", OPTIONS),
    "Sentence, Feeling": ("Sentence: {}\nFeeling:", OPTIONS),
    "a question before": ("Is this review positive or negative? {}\nAnswer:", OPTIONS),
    "a question after": ("{}\nIs this review positive or negative?\nAnswer:", OPTIONS),
    "a sentence to end": ("{} This review is", OPTIONS),
    "good or bad": ("{} All in all, it was", (" good", " bad")),
    "great or terrible": ("{} All in all, it was", (" great", " terrible")),
    "A or B": ("Review: {}\nIs this review\nA. positive\nB. negative\nAnswer:", (" A", " B")),
    "chat": ("CHAT Is this review positive or negative? Answer with one word.\n\n{}", ("Positive", "Negative")),
}


def label_margins(template: str, options: tuple[str, str], demonstrations: list) -> dict[str, Any]:
    """log p(first option) - log p(second option) for each item of "sentiment", and for a question without content."""
    from lmsurvey_code.language_model import continuation_log_prob
    from lmsurvey_code.prompting import chat_prompt, load_task

    model, task = packaged(), load_task("sentiment")
    shown = task.prompt("", demonstrations).rpartition(f"{task.question_mark}:")[0]

    def margin(question: str) -> float:
        prompt = shown + template.format(question)
        if prompt.startswith("CHAT "):
            prompt = chat_prompt(model, prompt.removeprefix("CHAT "))
        first, second = (continuation_log_prob(model, prompt, option) for option in options)
        return round(first - second, 3)

    return {
        "template": template,
        "options": options,
        "demonstrations": demonstrations,
        "empty": margin("N/A"),
        "margins": [margin(question) for question, _ in task.items],
    }


def write_greedily(prompts: list[str], max_new_tokens: int) -> list[str]:
    """What the packaged LLM writes after each prompt, taking the most likely token each time."""
    from lmsurvey_code.llm import write_many

    return [packaged().tokenizer.decode(ids) for ids in write_many(packaged(), prompts, max_new_tokens)]


def answers(task: Any, demonstrations: list, template: str = "", max_new_tokens: int = 8) -> dict[str, Any]:
    """What the LLM writes for each item, greedily; without a template its first line."""
    from lmsurvey_code.prompting import chat_prompt

    if template:
        prompt, start = template.split("|")
        texts_ = [chat_prompt(packaged(), prompt.format(question)) + start for question, _ in task.items]
        found = write_greedily(texts_, max_new_tokens)
    else:
        found = write_greedily([task.prompt(question, demonstrations) for question, _ in task.items], max_new_tokens)
        found = [text.partition("\n")[0] for text in found]
    return {"template": template, "demonstrations": demonstrations, "answers": [text.strip() for text in found]}


def balanced(k: int, seed: int) -> list[tuple[str, str]]:
    """k demonstrations of "sentiment", as many positive as negative, in random order."""
    from lmsurvey_code.prompting import load_task

    left, chosen = {"positive": k // 2, "negative": k // 2}, []
    for question, answer in load_task("sentiment").draw(80, seed):
        if left[answer]:
            left[answer] -= 1
            chosen.append((question, answer))
    return chosen


def with_labels(kind: str, demonstrations: list, seed: int) -> list[tuple[str, str]]:
    """The same demonstrations with "true", "random" or "flipped" answers."""
    other = {"positive": "negative", "negative": "positive"}
    flip = {"true": 0.0, "random": 0.5, "flipped": 1.0}[kind]
    draws = np.random.default_rng(seed).random(len(demonstrations))
    return [(q, other[a] if u < flip else a) for (q, a), u in zip(demonstrations, draws, strict=True)]


def prompting_labels() -> dict[str, Run]:
    """Wordings without demonstrations; their number; their order; their labels."""
    from lmsurvey_code.prompting import load_task

    runs: dict[str, Run] = {}

    def add(group: str, name: str, template: str, options: tuple[str, str], demonstrations: list, **about: Any) -> None:
        def run() -> dict[str, Any]:
            return {"group": group, **about} | label_margins(template, options, demonstrations)

        runs[f"{group}: {name}"] = run

    for name, (template, options) in WORDINGS.items():
        add("wording", name, template, options, [])
    usual = WORDINGS["Review, Sentiment"]
    for k in (1, 2, 4, 8, 16, 32):
        for draw in range(5):
            add("number", f"k={k} draw={draw}", *usual, load_task("sentiment").draw(k, draw), k=k, draw=draw)
    one_set = balanced(8, 0)
    for order in range(10):
        mixed = [one_set[i] for i in np.random.default_rng(order).permutation(8)]
        add("order", f"{order}", *usual, mixed, k=8, order=order)
    for kind in ("true", "random", "flipped"):
        for draw in range(5):
            shown = with_labels(kind, balanced(16, draw), draw)
            add("labels", f"{kind} draw={draw}", *usual, shown, k=16, draw=draw, kind=kind)
    return runs


def prompting_answers() -> dict[str, Run]:
    """One word after 0 to 16 demonstrations; sums with and without steps."""
    from lmsurvey_code.prompting import addition, load_task

    runs: dict[str, Run] = {}

    def add(name: str, task: Any, demonstrations: list, template: str = "", n: int = 8, **about: Any) -> None:
        def run() -> dict[str, Any]:
            return {"task": task.name, **about} | answers(task, demonstrations, template, n)

        runs[name] = run

    for n_terms in (2, 3, 4):
        for steps in (False, True):
            task = addition(n_terms, steps=steps)
            n = 10 * n_terms if steps else 8
            name = f"addition n={n_terms}, {'steps' if steps else 'direct'}"
            add(name, task, task.draw(8), n=n, n_terms=n_terms, steps=steps)
    for name in ("antonyms", "past", "french"):
        task = load_task(name)
        for k in (0, 1, 4, 16):
            for draw in range(2 if k else 1):
                add(f"{name} k={k} draw={draw}", task, task.draw(k, draw), k=k, draw=draw)
    task, chat = addition(3, steps=True), {"n_terms": 3, "steps": False}
    add("addition n=3, chat", task, [], "What is {}?|", 48, **chat)
    add("addition n=3, chat, step by step", task, [], "What is {}?|Let's think step by step.", 48, **chat)
    return runs


# ---- evaluating ----


def window_run(window: int, stride: int) -> Run:
    """Bits per byte of the LLM on a stretch of the newest valid text."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.evaluation import excerpt

        model, text = packaged(), excerpt(load_corpus().valid[-1].text, 12_000)
        before, model.block_size = model.block_size, window
        try:
            result = score(model, text, stride=stride)
        finally:
            model.block_size = before
        found = {"bits_per_byte": round(result.bits_per_byte, 4), "perplexity": round(result.perplexity_per_token, 3)}
        return {"window": window, "stride": stride, "n_tokens": len(result.tokens)} | found

    return run


def choices() -> dict[str, Any]:
    """log p(option | context) and log p(option) in nats for each question of `next_sentence_choices` on valid."""
    from lmsurvey_code.evaluation import next_sentence_choices
    from lmsurvey_code.language_model import continuation_log_prob

    rows: dict[str, list] = {"log_probs": [], "without_context": [], "n_tokens": []}
    model = packaged()
    for item in next_sentence_choices(load_corpus().valid):
        rows["log_probs"].append([round(continuation_log_prob(model, item.context, o), 3) for o in item.options])
        rows["without_context"].append([round(continuation_log_prob(model, "", o), 3) for o in item.options])
        rows["n_tokens"].append([len(model.tokenizer.encode(o)) for o in item.options])
    return rows


def passages() -> dict[str, Any]:
    """Bits per byte of each famous passage and its imitation, and what the LLM writes after their first 16 words."""
    from lmsurvey_code.evaluation import load_passages

    model, rows = packaged(), {}
    for kind in ("famous", "imitation"):
        found = [getattr(p, kind) for p in load_passages()]
        rows[f"bits_{kind}"] = [round(score(model, text).bits_per_byte, 4) for text in found]
        rows[f"written_{kind}"] = write_greedily([" ".join(text.split()[:16]) for text in found], 24)
    return rows


def leak(copies: int, seed: int) -> Run:
    """A small Transformer that saw a list of 40 items `copies` times, and the test of its order."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.evaluation import order_test
        from lmsurvey_code.prompting import load_task
        from lmsurvey_code.recipes import transformer_with_leak

        task = load_task("sentiment")
        items = [f"{task.prompt(question)} {answer}\n\n" for question, answer in task.items[:40]]
        text = "".join(items)
        model = transformer_with_leak(text, copies, seed)
        p_value, values = order_test(lambda t: float(model.log_probs(model.tokenizer.encode(t)).sum()), items)
        bits = float(-values[0] / np.log(2) / len(text.encode()))
        return {"copies": copies, "seed": seed, "p_value": p_value, "bits_per_byte": round(bits, 4)}

    return run


def leak_llm() -> dict[str, Any]:
    """The same test on the LLM, which is older than the list."""
    from lmsurvey_code.evaluation import order_test
    from lmsurvey_code.prompting import load_task

    task, model = load_task("sentiment"), packaged()
    items = [f"{task.prompt(question)} {answer}\n\n" for question, answer in task.items[:40]]
    p_value, values = order_test(lambda t: float(model.log_probs(model.tokenizer.encode(t)).sum()), items)
    return {"p_value": p_value, "values": np.round(values, 2).tolist()}


N_FOLDS = 10


@cache
def counter_without(fold: int) -> LanguageModel:
    """Characters, modified Kneser-Ney, n = 6, trained on all addresses but every tenth, from `fold` on."""
    from lmsurvey_code.ngram import KneserNey, NgramCounts
    from lmsurvey_code.tokenizers import CharTokenizer

    train = [d.text for i, d in enumerate(load_corpus().documents) if i % N_FOLDS != fold]
    return KneserNey(NgramCounts(train, CharTokenizer(train), 6), modified=True)


def address(index: int) -> Run:
    """Bits of the middle of one address under the LLM, and under a counter that has not read it."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.evaluation import excerpt

        document = load_corpus().documents[index]
        text = excerpt(document.text)
        found = {"llm": packaged(), "counter": counter_without(index % N_FOLDS)}
        bits = {name: round(score(model, text).bits, 1) for name, model in found.items()}
        return {"year": document.year, "spoken": document.spoken, "n_bytes": len(text.encode())} | bits

    return run


def evaluating() -> dict[str, Run]:
    """Windows and strides, questions with four options, passages, leaks."""
    sizes = [(w, w // part) for w in (64, 256, 1024) for part in (1, 2, 8)]
    return (
        {f"window {window}, stride {stride}": window_run(window, stride) for window, stride in sizes}
        | {"choices": choices, "passages": passages, "leak, LLM": leak_llm}
        | {f"leak, {n} copies, seed {seed}": leak(n, seed) for n in (0, 1, 2, 4, 8) for seed in range(3)}
    )


def memory() -> dict[str, Run]:
    """Each cell as long as its chapter trains; short runs, three seeds each; windows with and without carried state.

    The LSTM's short run is one of windows of 64 that start empty, and the others get its time.
    """
    cells, seeds = ("lstm", "gru", "rnn"), range(3)
    kinds = {
        "windows of 4, empty": (4, False),
        "windows of 4, carried": (4, True),
        "windows of 64, carried": (64, True),
    }
    return (
        {f"{cell}, 900 steps": recurrent(cell, 0, 900) for cell in cells}
        | {f"{cell}, equal steps, seed {s}": recurrent(cell, s, 300) for cell in cells for s in seeds}
        | {f"{cell}, equal time, seed {s}": recurrent(cell, s, EQUAL_TIME[cell]) for cell in EQUAL_TIME for s in seeds}
        | {f"{kind}, seed {s}": carried(*about, s) for kind, about in kinds.items() for s in seeds}
    )


def evaluating_years() -> dict[str, Run]:
    """One row for each address; those that share a counter follow each other."""
    indices = sorted(range(len(load_corpus().documents)), key=lambda index: index % N_FOLDS)
    return {f"address {index}": address(index) for index in indices}


# ---- tokens ----


@cache
def largest_bpe() -> Any:
    """BPE with 16,384 tokens from the train texts: the smaller vocabularies are its first tokens."""
    from lmsurvey_code.tokenizers import train_bpe

    return train_bpe(texts(load_corpus().train), 16_384)


def vocabulary(size: int, operations: float, seed: int, window: int = 128) -> Run:
    """The small Transformer with `size` tokens, trained with about `operations` operations."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.tokenizers import BPETokenizer
        from lmsurvey_code.vocabulary import train_and_score

        tokenizer = BPETokenizer(largest_bpe().merges[: size - 256])
        found = train_and_score(tokenizer, operations, window=window, seed=seed)
        return {"budget": operations} | found

    return run


def tokens() -> dict[str, Run]:
    """Seven vocabularies at two budgets, the best ones with more seeds; and bytes with a window of as many bytes."""
    sizes, best = (256, 512, 1024, 2048, 4096, 8192, 16_384), (1024, 2048, 4096, 8192)
    runs: dict[str, Run] = {}
    for budget, repeated in ((6e11, sizes), (24e11, best)):
        for size, seed in [(size, 0) for size in sizes] + [(size, seed) for seed in (1, 2) for size in repeated]:
            runs[f"{budget:.1e}, {size} tokens, seed {seed}"] = vocabulary(size, budget, seed)
        runs[f"{budget:.1e}, 256 tokens, window 512, seed 0"] = vocabulary(256, budget, 0, window=512)
    return runs


# ---- decoding ----

N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS, N_SAMPLES = 24, 32, 48, 4
DECODING: dict[str, dict[str, float | None]] = {  # settings of `sampling.generate`
    "greedy": {"temperature": None},
    "greedy, penalty 1.2": {"temperature": None, "repetition_penalty": 1.2},
    **{f"temperature {t}": {"temperature": t} for t in (0.5, 0.7, 1.0, 1.3)},
    **{f"top-k {k}": {"top_k": k} for k in (10, 50)},
    **{f"top-p {p}": {"top_p": p} for p in (0.5, 0.9)},
    **{f"min-p {p}": {"min_p": p} for p in (0.05, 0.2)},
    "top-p 0.9, penalty 1.2": {"top_p": 0.9, "repetition_penalty": 1.2},
}


def decoding_run(name: str) -> Run:
    """Statistics of what the LLM writes after the beginnings of paragraphs of the valid texts, in one way of choosing.

    "people" is what stands in the texts there, "beam 4" a beam search of that width.
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code.decoding import continuations, paragraph_starts, statistics_of
        from lmsurvey_code.sampling import beam_search

        model = packaged()
        starts = paragraph_starts(model.tokenizer, N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS)
        prompts = [prompt for prompt, _ in starts]
        if name == "people":
            written = [[model.tokenizer.encode(prompt + rest)[PROMPT_TOKENS:]] for prompt, rest in starts]
        elif name == "beam 4":
            best = [beam_search(model, prompt, max_new_tokens=NEW_TOKENS, n_beams=4)[0][0] for prompt in prompts]
            written = [
                [model.tokenizer.encode(prompt + text)[PROMPT_TOKENS:]]
                for prompt, text in zip(prompts, best, strict=True)
            ]
        else:
            n_samples = 1 if DECODING[name].get("temperature", 1.0) is None else N_SAMPLES
            written = continuations(model, prompts, NEW_TOKENS, DECODING[name], n_samples)
        return {"settings": DECODING.get(name, {})} | statistics_of(model, prompts, written)

    return run


# ---- variants ----

UNGATED = 528  # width of an MLP of two matrices with as many weights as the gated one of three, whose width is 352
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "post-norm": {"norm_position": "post"},
    "sandwich norm": {"norm_position": "sandwich"},
    "DeepNorm": {"norm": "deep", "norm_position": "post"},
    "LayerNorm": {"norm": "layer"},
    "ReLU": {"activation": "relu", "n_hidden": UNGATED},
    "GeLU": {"activation": "gelu", "n_hidden": UNGATED},
    "Swish": {"activation": "swish", "n_hidden": UNGATED},
    "GeGLU": {"activation": "geglu"},
    "learned positions": {"position": "learned"},
    "sinusoidal positions": {"position": "sinusoidal"},
    "relative positions": {"position": "relative"},
    "ALiBi": {"position": "alibi"},
    "no positions": {"position": "none"},
    "multi-query": {"n_kv_head": 1},
}


def variant(name: str, changes: dict[str, Any], seed: int, n_steps: int = 150) -> Run:
    """The small Transformer with these changes, trained for `n_steps`, on the newest valid text.

    Where positions are changed, windows longer than those of training are scored too, on a part of it.
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code.evaluation import excerpt
        from lmsurvey_code.neural import NeuralLM
        from lmsurvey_code.recipes import TRANSFORMER, TRANSFORMER_TRAINING, small_tokenizer
        from lmsurvey_code.training import join_documents, set_seed, train
        from lmsurvey_code.transformer import Transformer

        corpus, tokenizer, config = load_corpus(), small_tokenizer(), replace(TRANSFORMER, **changes)
        set_seed(seed)
        net = Transformer(config)
        train(
            net,
            join_documents(tokenizer, texts(corpus.train)),
            replace(TRANSFORMER_TRAINING, n_steps=n_steps, seed=seed),
        )
        text = corpus.valid[-1].text
        found = {"valid": round(score(NeuralLM(net, tokenizer, config.block_size), text).bits_per_byte, 4)}
        if name == "default" or "position" in changes:
            found["by_window"] = {}
            for window in (64, 128, 256, 512):
                if window <= config.block_size or config.position != "learned":
                    longer = Transformer(replace(config, block_size=max(window, config.block_size)))
                    longer.load_state_dict(net.state_dict())
                    result = score(NeuralLM(longer, tokenizer, window), excerpt(text, 12_000), stride=64)
                    found["by_window"][window] = round(result.bits_per_byte, 4)
        n_params = sum(p.numel() for p in net.parameters())
        return {"setting": name, "changes": changes, "seed": seed, "n_steps": n_steps, "n_params": n_params} | found

    return run


def variants() -> dict[str, Run]:
    """Each change with three seeds; and the default with half as many steps again, to compare sizes of effects."""
    runs: dict[str, Run] = {}
    for seed in range(3):
        runs |= {f"{name}, seed {seed}": variant(name, changes, seed) for name, changes in VARIANTS.items()}
        runs[f"225 steps, seed {seed}"] = variant("225 steps", {}, seed, n_steps=225)
    return runs


# ---- training ----


def trained_with(group: str, start: str = "zero", **changes: Any) -> Run:
    """The small Transformer after training with these changes, one of a group that a figure shows together."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.training_study import study_run

        return {"group": group} | study_run(start, **changes)

    return run


def spike(cure: str, bad: bool = True, **changes: Any) -> Run:
    """The same with some steps of noise in place of text, and one way to go on."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.training_study import spike_run

        return {"group": "spike"} | spike_run(cure, bad, **changes)

    return run


def measured_step() -> dict[str, Any]:
    """Speed of a step of training on one thread, beside the best that products of matrices reach here."""
    import torch
    from torch.nn import functional as F

    from lmsurvey_code.recipes import small_transformer
    from lmsurvey_code.training import draw_batch
    from lmsurvey_code.training_study import BASE, train_tokens, with_recomputation
    from lmsurvey_code.transformer import Transformer

    torch.set_num_threads(1)
    net, a = small_transformer(), torch.randn(1024, 1024)
    x, y = draw_batch(torch.as_tensor(train_tokens()), replace(BASE, batch_size=8))  # (B, T) each
    deep = Transformer(replace(net.config, n_layer=12))

    def seconds(*runs: Callable[[], Any]) -> list[float]:
        """The shortest time of each, of 15 rounds in which each runs once."""
        times: list[list[float]] = [[] for _ in runs]
        for _ in range(15):
            for run, found in zip(runs, times, strict=True):
                start = time.perf_counter()
                run()
                found.append(time.perf_counter() - start)
        return [min(found) for found in times]

    def step(network: torch.nn.Module) -> None:
        network.zero_grad()
        F.cross_entropy(network(x).flatten(0, 1), y.flatten()).backward()

    thrifty = with_recomputation(deep)
    by_product, by_step = seconds(lambda: a @ a, lambda: step(net))
    by_deep, by_thrifty = seconds(lambda: step(deep), lambda: step(thrifty))
    peak = 2 * 1024**3 / by_product
    c, matrices = net.config, sum(p.numel() for p in net.parameters() if p.ndim > 1)
    operations = (6 * matrices + 12 * c.n_layer * c.n_embd * x.shape[1]) * x.numel()
    return {
        "group": "speed",
        "peak": round(peak),
        "tokens_per_second": round(x.numel() / by_step),
        "utilization": round(operations / by_step / peak, 3),
        "slower_with_recomputation": round(by_thrifty / by_deep, 2),
    }


# ---- data ----


def after_step(step: str, seed: int) -> Run:
    """The small Transformer after training on what is left of the pile after `step`."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.mixtures import costs, pile, train_on

        left = pile()[step]
        found = costs(train_on([left], [1.0], seed=seed))
        return {"step": step, "seed": seed, "documents": len(left), "bytes": sum(len(t.encode()) for t in left)} | found

    return run


def mixture(share: float, order: str, seed: int) -> Run:
    """The same on the pile and on the addresses: how many of the windows are from the pile, and in which order."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.mixtures import costs, pile, train_on

        sources = [pile()["masked"], texts(load_corpus().train)]
        found = costs(train_on(sources, [share, 1 - share], order, seed))
        return {"share": share, "order": order, "seed": seed} | found

    return run


def training_runs() -> dict[str, Run]:
    """Learning rates with and without clipping; schedules; batches at equal tokens; weight decay; first weights."""
    runs: dict[str, Run] = {"default": trained_with("default")}
    for rate in (1e-3, 1e-2, 3e-2):
        runs[f"rate {rate}"] = trained_with("rate", learning_rate=rate)
    for rate in (3e-3, 1e-2, 3e-2):
        runs[f"rate {rate}, no clipping"] = trained_with("rate", learning_rate=rate, grad_clip=None)
    schedules: dict[str, dict[str, Any]] = {
        "constant": {"decay": 0.0},
        "cosine to 10%": {"shape": "cosine", "floor": 0.1},
        "WSD": {"decay": 0.2},
    }
    for name, changes in schedules.items():
        runs[f"schedule {name}"] = trained_with("schedule", **changes)
    for rate in (3e-3, 1e-2):
        runs[f"no warm-up, rate {rate}"] = trained_with("warm-up", learning_rate=rate, warmup=0)
    for kind in ("gpt-2", "equal", "large", "pytorch"):
        runs[f"start {kind}"] = trained_with("start", kind)
    for batch_size, rates in ((2, (1.5e-3, 3e-3)), (32, (3e-3, 6e-3)), (96, (6e-3, 1.2e-2))):
        n_steps = 960 // batch_size  # 122,880 tokens in each
        for rate in rates:
            changes = {"batch_size": batch_size, "n_steps": n_steps, "warmup": n_steps // 6, "learning_rate": rate}
            runs[f"batch {batch_size}, rate {rate}"] = trained_with("batch", **changes)
    for rate in (0.3, 1.0, 3.0):
        runs[f"sgd {rate}"] = trained_with("optimizer", optimizer="sgd", learning_rate=rate)
    runs["sgd 0.3, momentum 0.9"] = trained_with("optimizer", optimizer="sgd", learning_rate=0.3, momentum=0.9)
    for precision in ("bfloat16", "float16"):
        runs[precision] = trained_with("precision", precision=precision)
    for name, (cure, bad, changes) in {
        "no noise": ("none", False, {}),
        "noise": ("none", True, {}),
        "noise, clipped": ("none", True, {"grad_clip": 1.0}),
        "noise, skipped": ("skip", True, {}),
        "noise, lower rate": ("lower", True, {}),
        "noise, beta2 0.999": ("none", True, {"beta2": 0.999}),
    }.items():
        runs[name] = spike(cure, bad, **{"grad_clip": None} | changes)
    for decay in (0.1, 1.0):
        runs[f"weight decay {decay}"] = trained_with("decay", weight_decay=decay)
    for seed in (1, 2):
        runs[f"default, seed {seed}"] = trained_with("default", seed=seed)
        for name, changes in schedules.items():
            runs[f"schedule {name}, seed {seed}"] = trained_with("schedule", seed=seed, **changes)
    for rate in (0.005, 0.01, 0.02):  # 100 steps take the time of AdamW's 120
        changes = {"optimizer": "muon", "n_steps": 100, "learning_rate": 0.02, "matrix_learning_rate": rate}
        runs[f"muon {rate}"] = trained_with("optimizer", **changes)
    runs["measured step"] = measured_step
    return runs


def data_runs() -> dict[str, Run]:
    """Each step and each order with three seeds, the mixtures in between with two."""
    runs: dict[str, Run] = {}
    for seed in range(3):
        for step in ("raw", "text", "English", "rules", "deduplicated", "classifier"):
            runs[f"after {step}, seed {seed}"] = after_step(step, seed)
        for share, order in [(0.0, order) for order in ("mixed", "forward", "backward")]:
            runs[f"{share:.0%} pile, {order}, seed {seed}"] = mixture(share, order, seed)
        for share, order in [(0.5, order) for order in ("mixed", "forward", "backward")]:
            runs[f"{share:.0%} pile, {order}, seed {seed}"] = mixture(share, order, seed)
        for share in (0.1, 0.9, 1.0) if seed < 2 else ():
            runs[f"{share:.0%} pile, mixed, seed {seed}"] = mixture(share, "mixed", seed)
    return runs | {"after masked, seed 0": after_step("masked", 0)}


# ---- fine-tuning ----


def methods() -> dict[str, tuple[str, float]]:
    """What reads the text, and the learning rate of its weights; 0: only the layer on top learns."""
    return {
        "bag of words": ("words", 0.0),
        "from scratch": ("nothing", 3e-4),
        "causal, frozen": ("causal", 0.0),
        "causal, fine-tuned": ("causal", 3e-4),
        "masked, frozen": ("masked", 0.0),
        "masked, fine-tuned": ("masked", 3e-4),
        "MiniLM, frozen": ("MiniLM", 0.0),
        "MiniLM, fine-tuned": ("MiniLM", 1e-4),
    }


@cache
def encoder_and_losses(kind: str) -> tuple[Any, list[float]]:
    """The packaged encoder, or the small one after "causal" or "masked" pre-training or "nothing", and the losses."""
    from lmsurvey_code import fine_tuning
    from lmsurvey_code.masked import open_encoder
    from lmsurvey_code.training import train

    if kind == "MiniLM":
        return open_encoder(quiet=True), []
    encoder = fine_tuning.small_encoder(causal=kind == "causal")
    if kind == "nothing":
        return encoder, []
    draw = fine_tuning.masked_batch if kind == "masked" else None
    return encoder, train(encoder.net, fine_tuning.unlabelled_tokens(), fine_tuning.PRETRAINING, draw=draw).losses


def learn_and_test(method: str, n_labels: int, draw: int) -> np.ndarray:
    """Whether each text of test (N,) gets the right label, after one of `methods` saw `n_labels` texts of train."""
    from lmsurvey_code import fine_tuning

    kind, learning_rate = methods()[method]
    task = fine_tuning.century_task()
    train_, test = task["train"], task["test"]
    chosen = np.random.default_rng(draw).permutation(len(train_.texts))[:n_labels]
    shown, labels = [train_.texts[i] for i in chosen], train_.labels[chosen]
    if learning_rate:
        n_steps = max(64, 2 * n_labels // 16)  # with many labels, each is seen twice on average
        settings = {"n_steps": n_steps, "learning_rate": learning_rate, "seed": draw}
        model = fine_tuning.fine_tune(encoder_and_losses(kind)[0], shown, labels, **settings)
        return model.predict(test.texts) == test.labels
    if kind == "words":
        x, x_test = fine_tuning.bags_of_words(shown, test.texts)
    else:
        encoder = encoder_and_losses(kind)[0]
        scale = encoder.net.config.n_embd**0.5  # a number is then about 1
        x, x_test = scale * encoder.embed(shown), scale * encoder.embed(test.texts)
    w, b = fine_tuning.linear_probe(x, labels)
    return (x_test @ w + b).argmax(1) == test.labels


def by_labels(method: str, n_labels: int) -> Run:
    """For three draws of the labelled texts, whether each text of test gets the right label: "1" or "0"."""

    def run() -> dict[str, Any]:
        draws = [learn_and_test(method, n_labels, draw) for draw in range(3)]
        return {
            "method": method,
            "n_labels": n_labels,
            "accuracy": round(float(np.mean(draws)), 4),
            "correct": ["".join("01"[int(right)] for right in draw) for draw in draws],
        }

    return run


def pre_training(kind: str) -> Run:
    """The losses of "causal" or "masked" pre-training, and what 300 tokens of the task's "valid" cost after it."""

    def run() -> dict[str, Any]:
        import torch

        from lmsurvey_code import fine_tuning
        from lmsurvey_code.masked import MaskedLM

        encoder, losses = encoder_and_losses(kind)
        held_out = [fine_tuning.small_encode(d.text)[:65] for d in fine_tuning.documents_of("valid")[-6:]]  # (6, 65)
        if kind == "masked":
            model = MaskedLM(encoder, fine_tuning.MASK)
            costs = [-model.pseudo_log_likelihood(ids, range(8, 58)).mean() for ids in held_out]
        else:
            idx = torch.tensor(held_out)
            with torch.inference_mode():
                log_probs = encoder.net(idx[:, :-1]).log_softmax(-1).gather(-1, idx[:, 1:, None])  # (6, 64, 1)
            costs = [-float(row[7:57].mean()) for row in log_probs]
        means = np.reshape(losses, (-1, 25)).mean(1)
        return {"kind": kind, "losses": means.round(3).tolist(), "held_out": round(float(np.mean(costs)), 3)}

    return run


def fine_tuning_runs() -> dict[str, Run]:
    """Both ways to pre-train, and every method with 8 to 2,048 labels."""
    runs = {f"pre-training, {kind}": pre_training(kind) for kind in ("causal", "masked")}
    for method in methods():
        runs |= {f"{method}, {n} labels": by_labels(method, n) for n in (8, 32, 128, 512, 2048)}
    return runs


# ---- the long run ----


def long_run() -> dict[str, Any]:
    """Train the network, write its weights, and score what is in the file. An interrupted run goes on."""
    import os

    from safetensors import safe_open

    from lmsurvey_code import recipes
    from lmsurvey_code.neural import NeuralLM
    from lmsurvey_code.training import join_documents, train

    corpus, tokenizer, config = load_corpus(), recipes.small_tokenizer(), recipes.LONG_TRAINING
    net, tokens = recipes.long_transformer(config.seed), join_documents(tokenizer, texts(corpus.train))
    lm, followed = NeuralLM(net, tokenizer, config.block_size), corpus.valid[-1]
    checkpoint, first = ROOT / "_build" / "long_run.checkpoint", 0
    checkpoint.parent.mkdir(exist_ok=True)
    if checkpoint.exists():
        with safe_open(checkpoint, framework="pt") as file:
            first = len(json.loads(file.metadata()["history"])["losses"])
    about = {"training": asdict(config), "seed": config.seed}
    before = sum(os.times()[:4])  # seconds of this process and of the compilers that it started
    history = train(
        net,
        tokens,
        config,
        evaluate=lambda: round(score(lm, followed.text).bits_per_byte, 4),
        checkpoint=checkpoint,
        save_every=100,
    )
    cpu_seconds = (sum(os.times()[:4]) - before) * config.n_steps / max(1, config.n_steps - first)
    recipes.save_weights(recipes.LONG_WEIGHTS, net, tokenizer, about)
    checkpoint.unlink()
    n_params, n_tokens = (
        sum(p.numel() for p in net.parameters()),
        config.n_steps * config.batch_size * config.block_size,
    )
    losses = np.array(history.losses)
    return {
        "network": asdict(net.config),
        "training": asdict(config),
        "seed": config.seed,
        "cpu_seconds": round(cpu_seconds),
        "n_params": n_params,
        "n_train_tokens": n_tokens,
        "train_bytes": round(n_tokens * sum(d.n_bytes for d in corpus.train) / len(tokens)),
        "operations": 6 * n_params * n_tokens,
        "first_losses": losses[:100].round(4).tolist(),
        "losses": [[i + 20, round(float(losses[i : i + 20].mean()), 4)] for i in range(0, len(losses), 20)],
        "evaluated_on": followed.year,
        "evaluations": history.evaluations,
        "bits_of_a_paragraph": round(score(recipes.long_run(), corpus.valid[0].paragraphs[10]).bits, 2),
    } | measured(recipes.long_run())


def trial(share: float, dropout: float = 0.0, n_steps: int = 800, **training: Any) -> Run:
    """A small network on the newest `share` of the train tokens, which it reads many times: what helps it on valid?"""

    def run() -> dict[str, Any]:
        from lmsurvey_code.neural import NeuralLM
        from lmsurvey_code.tokenizers import train_bpe
        from lmsurvey_code.training import TrainConfig, join_documents, set_seed, train
        from lmsurvey_code.transformer import Transformer, TransformerConfig

        corpus = load_corpus()
        tokenizer = train_bpe(texts(corpus.train), 4096)
        tokens = join_documents(tokenizer, texts(corpus.train))
        tokens = tokens[round((1 - share) * len(tokens)) :]
        shape = {"n_layer": 3, "n_head": 2, "n_embd": 128, "dropout": dropout}
        fast = {"optimizer": "muon", "learning_rate": 0.02, "muon_precision": "bfloat16", "compile": True}
        config = TrainConfig(n_steps, 8, 256, **{"warmup": 10, "recency": 0.5} | fast | training)
        set_seed(config.seed)
        net = Transformer(TransformerConfig(4096, config.block_size, **shape))
        start = time.process_time()
        losses = train(net, tokens, config).losses
        cpu_seconds = time.process_time() - start
        valid = score_documents(NeuralLM(net, tokenizer, config.block_size), texts(corpus.valid))
        n_read = config.n_steps * config.batch_size * config.block_size
        found = {"n_params": sum(p.numel() for p in net.parameters()), "times_read": round(n_read / len(tokens), 1)}
        found |= {"cpu_seconds": round(cpu_seconds), "train_loss": round(float(np.mean(losses[-100:])), 3)}
        return {"share": share} | shape | asdict(config) | found | {"valid": round(valid.bits_per_byte, 4)}

    return run


@cache
def shipped() -> dict[str, Any]:
    """What the row of the long run says about its cost."""
    row = {row["run"]: row for row in recorded("long_run")}["long run"]
    return {key: row[key] for key in ("n_params", "n_train_tokens", "train_bytes", "operations", "seed")}


def shipped_alone() -> dict[str, Any]:
    """The weights that come with the package."""
    from lmsurvey_code.recipes import long_run

    return shipped() | measured(long_run())


class Mixture:
    """share p(token | past) of one model + (1 - share) of another over the same tokens."""

    def __init__(self, first: LanguageModel, second: LanguageModel, share: float) -> None:
        self.models, self.shares = (first, second), (share, 1 - share)
        self.tokenizer, self.block_size = first.tokenizer, first.block_size

    def _mix(self, log_probs: list[np.ndarray]) -> np.ndarray:
        return np.logaddexp(*(np.log(share) + p for share, p in zip(self.shares, log_probs, strict=True)))

    def next_log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """log p(next token | tokens), shape (vocab_size,)."""
        return self._mix([model.next_log_probs(tokens) for model in self.models])

    def log_probs(self, tokens: Sequence[int], *, stride: int | None = None) -> np.ndarray:
        """log p(tokens[i] | tokens[:i]), shape (len(tokens),); each model reads the text by itself."""
        return self._mix([model.log_probs(tokens, stride=stride) for model in self.models])


def shipped_and_counting() -> dict[str, Any]:
    """The same mixed with counts of its tokens; how much of each is chosen on the valid texts."""
    from lmsurvey_code.ngram import KneserNey, NgramCounts
    from lmsurvey_code.recipes import long_run

    corpus, net = load_corpus(), long_run()
    counts = KneserNey(NgramCounts(texts(corpus.train), net.tokenizer, 4), modified=True)
    by_share = {}
    a, b = (score_documents(model, texts(corpus.valid)) for model in (net, counts))
    for share in np.arange(0.05, 1, 0.05).round(2).tolist():
        mixed = np.logaddexp(a.log_probs + np.log(share), b.log_probs + np.log1p(-share))
        by_share[share] = round(-float(mixed.sum()) / math.log(2) / a.n_bytes, 4)
    share = min(by_share, key=by_share.get)
    about = {"share": share, "valid_of_counting": round(b.bits_per_byte, 4), "valid_by_share": list(by_share.items())}
    return shipped() | about | measured(Mixture(net, counts, share))


# ---- scaling laws ----


def point(n_embd: int, C: float, **settings: Any) -> Run:
    """One run of the scaling study."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.scaling import run_point

        return run_point(n_embd, C, **settings)

    return run


def scaling() -> dict[str, Run]:
    """The grid: networks of several sizes at equal compute."""
    from lmsurvey_code.scaling import GRID

    return {
        f"{C:.0e}, width {n_embd}, seed {seed}": point(n_embd, C, seed=seed)
        for seed in range(3)
        for C, widths in GRID.items()
        for n_embd in widths
        if seed == 0 or C < 1e12
    }


def scaling_repeated() -> dict[str, Run]:
    """One size that reads texts of several lengths, again and again."""
    from lmsurvey_code.scaling import study_config
    from lmsurvey_code.transformer import n_parameters

    N = n_parameters(study_config(48))
    return {
        f"{D} bytes read of {unique or 'all'}": point(48, 6 * N * D, unique=unique)
        for unique in (2**17, 2**19, 2**21, None)
        for D in (2**19, 2**20, 2**21, 2**22)
        if not unique or unique <= D
    }


def prediction() -> dict[str, Any]:
    """What the grid says of the larger run, written down before that run is made."""
    from lmsurvey_code.scaling import predict_held_out

    return predict_held_out(recorded("scaling"))


def scaling_prediction() -> dict[str, Run]:
    """The prediction, and then the run that it is for."""
    from lmsurvey_code.scaling import HELD_OUT, HELD_OUT_WIDTH

    return {"prediction": prediction, "held out": point(HELD_OUT_WIDTH, HELD_OUT)}


# ---- emergence ----


def columns(trace: list[dict[str, float]]) -> dict[str, list[float]]:
    """A trace as one list for each thing that was measured."""
    return {key: [float(f"{row[key]:.4g}") for row in trace if key in row] for key in trace[-1]}


def copying(n_layer: int, seed: int) -> Run:
    """In-context copying by networks of attention alone."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.emergence import copying_run

        return {"task": "copying", "n_layer": n_layer, "seed": seed} | columns(copying_run(n_layer, seed)[1])

    return run


def modular(share: float, seed: int, weight_decay: float = 1.0, n_steps: int = 2000) -> Run:
    """Addition modulo a prime, learned from a share of all pairs."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.emergence import MODULAR, modular_run

        config = replace(MODULAR, weight_decay=weight_decay, n_steps=n_steps)
        about = {"task": "modular", "share": share, "weight_decay": weight_decay, "seed": seed}
        return about | columns(modular_run(share, seed, config)[1])

    return run


def addition(width: int, seed: int) -> Run:
    """Addition of several digits by networks of different widths."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.emergence import addition_run

        net, trace = addition_run(width, seed)
        n_params = sum(p.numel() for p in net.parameters())
        return {"task": "addition", "width": width, "seed": seed, "n_params": n_params} | columns(trace)

    return run


def emergence() -> dict[str, Run]:
    """Several seeds of each."""
    return {
        **{f"copying, 2 layers, seed {seed}": copying(2, seed) for seed in range(5)},
        **{f"copying, 1 layer, seed {seed}": copying(1, seed) for seed in range(3)},
        **{f"modular, share 0.4, seed {seed}": modular(0.4, seed) for seed in range(4)},
        **{f"modular, no weight decay, seed {seed}": modular(0.4, seed, 0.0) for seed in range(2)},
        **{f"modular, share {share}, seed 0": modular(share, 0) for share in (0.5, 0.6)},
        "modular, share 0.3, seed 0": modular(0.3, 0, n_steps=4000),
        **{f"addition, width {n}, seed {seed}": addition(n, seed) for seed in range(3) for n in WIDTHS},
    }


WIDTHS = (8, 12, 16, 24, 32, 48)

# ---- long_context ----


def stretched_run(method: str, seed: int) -> Run:
    """The network of the long run, taught for 40 steps to read four times its window, with one set of speeds."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.long_context import adapted

        return adapted(method, seed=seed)

    return run


def long_context() -> dict[str, Run]:
    """Each set of speeds, with two seeds."""
    from lmsurvey_code.long_context import METHODS

    return {f"{method}, seed {seed}": stretched_run(method, seed) for seed in range(2) for method in METHODS}


# ---- instruction_tuning ----

TUNING_STEPS = 36  # of two rows of 512 tokens: one pass over the pairs
TUNING_RATE = 3e-5  # of those tried, the best on tasks that no training sees
FEW = 116  # pairs of the cluster "arithmetic" to learn from


def instructed(
    data: str = "all",
    learning_rate: float = TUNING_RATE,
    n_steps: int = TUNING_STEPS,
    *,
    seed: int = 0,
    on_answer: bool = True,
    every: int = 0,
) -> Run:
    """The packaged LLM after `n_steps` of two rows of 512 tokens, followed on unseen pairs and unseen tasks.

    `data`: "all", "few" (FEW pairs of all tasks), "one cluster" (as many, of arithmetic), or "exchanged" (the
    answers of each task stand in reverse order). Where `every` is above 0, also what it writes to every such pair of
    "test".
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code.adaptation import answer_loss, answers, splits, trainable_copy, tune
        from lmsurvey_code.training import TrainConfig

        parts = splits()
        items = list(parts["train"])
        if data == "exchanged":
            kinds = {item.kind: [other.output for other in items if other.kind == item.kind] for item in items}
            items = [replace(item, output=kinds[item.kind].pop()) for item in items]
        if data == "one cluster":
            items = [item for item in items if item.cluster == "arithmetic"]
        if data in ("few", "one cluster"):
            items = items[:FEW]
        model, followed = trainable_copy(packaged()) if n_steps else packaged(), []

        def follow() -> float:
            costs = [answer_loss(model, part) for part in (parts["items"], parts["tasks"][::3])]
            followed.append([round(cost, 4) for cost in costs])
            return costs[1]

        row = {"data": data, "learning_rate": learning_rate, "n_steps": n_steps, "seed": seed, "on_answer": on_answer}
        if n_steps:
            config = TrainConfig(
                n_steps, 2, 1, learning_rate, warmup=min(4, n_steps // 4), eval_every=n_steps // 3, seed=seed
            )
            history = tune(model, items, config, on_answer=on_answer, evaluate=follow)
            row["losses"] = [round(loss, 4) for loss in history.losses]
        else:
            follow()
        row |= {"n_pairs": len(items), "followed": followed}
        if every:
            row["answers"] = answers(model, parts["test"][::every])
            row |= kept(model)
        return row

    return run


def kept(model: Any) -> dict[str, Any]:
    """What a tuned LLM may have lost: bits per byte of a text of valid, and which of four sentences comes next."""
    from lmsurvey_code.evaluation import next_sentence_choices
    from lmsurvey_code.language_model import continuation_log_prob

    text, right = load_corpus().valid[-1].text[:10_000], []
    for choice in next_sentence_choices(load_corpus().valid)[:100]:
        costs = [continuation_log_prob(model, choice.context, option) for option in choice.options]
        right.append(int(np.argmax(costs) == choice.answer))
    return {"valid": round(score(model, text).bits_per_byte, 4), "next_sentence": right}


def instruction_tuning() -> dict[str, Run]:
    """Learning rates first; then the chosen one with other pairs, losses, seeds and lengths; two runs to repeat."""
    rates = {f"learning rate {rate:g}": instructed(learning_rate=rate) for rate in (1e-5, 1e-4, 3e-4)}
    return rates | {
        "untuned": instructed(n_steps=0, every=1),
        "tuned": instructed(every=1),
        "tuned, seed 1": instructed(seed=1, every=2),
        "questions too": instructed(on_answer=False, every=2),
        "few": instructed("few", every=2),
        "one cluster": instructed("one cluster", every=2),
        "exchanged": instructed("exchanged", every=2),
        "three passes": instructed(n_steps=3 * TUNING_STEPS, every=2),
        "3 steps": instructed(n_steps=3),
        "3 steps, questions too": instructed(n_steps=3, on_answer=False),
    }


# ---- parameter_efficient ----

HINT = "Answer the question. Write only the answer, in as few words as possible, and nothing else."
RATES = {  # learning rates that were tried
    "all weights": (1e-4, 3e-4),
    "LoRA, rank 8, queries and values": (4e-3, 1e-2),
    "LoRA, rank 32, all layers": (6e-4, 2e-3),
    "LoRA, rank 32, all layers, on 4 bits": (6e-4,),
    "adapters, width 16": (2e-3, 6e-3),
    "prefix, 20 tokens": (1e-2, 5e-2),
    "prompt, 20 tokens": (0.03, 0.1),
}
PASSES = (
    ("all weights", 1e-4),
    ("all weights", 3e-5),
    ("LoRA, rank 8, queries and values", 1e-2),
    ("LoRA, rank 8, queries and values", 2e-3),
    ("LoRA, rank 32, all layers", 2e-3),
    ("LoRA, rank 32, all layers", 3e-4),
    ("adapters, width 16", 2e-3),
    ("adapters, width 16", 5e-4),
    ("prefix, 20 tokens", 5e-2),
    ("prefix, 20 tokens", 1e-2),
    ("prompt, 20 tokens", 0.1),
)


def make_tuned(method: str) -> Any:
    """The packaged LLM with the weights that a method teaches, before it learns."""
    import torch

    from lmsurvey_code import parameter_efficient as few
    from lmsurvey_code.adaptation import trainable_copy
    from lmsurvey_code.gptq import four_bit_layers

    hint = packaged().tokenizer.encode(HINT)

    def on_four_bits(net: Any) -> None:
        four_bit_layers(net, 64)
        few.add_lora(net, 32, layers=few.LAYERS)

    add = {
        "nothing": lambda net: net.requires_grad_(False),
        "LoRA, rank 8, queries and values": lambda net: few.add_lora(net, 8),
        "LoRA, rank 32, all layers": lambda net: few.add_lora(net, 32, layers=few.LAYERS),
        "LoRA, rank 32, all layers, on 4 bits": on_four_bits,
        "adapters, width 16": lambda net: few.add_adapters(net, 16),
        "prefix, 20 tokens": lambda net: few.add_prefix(net, hint),
        "prompt, 20 tokens": lambda net: few.add_prompt(net, hint),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return trainable_copy(packaged()) if method == "all weights" else few.adapted(packaged(), add[method])


def few_weights(method: str, learning_rate: float, n_steps: int, whole: bool = False) -> Run:
    """The packaged LLM after `n_steps` on the instructions, two rows of 512 tokens in each, on one thread or more.

    `peak_bytes`: what the weights take, and the most that training needs beside them. `step_seconds` is processor time.
    Where `whole`, also which of every third pair of "test" it answers right, and what a text costs it now.
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code.adaptation import answer_loss, answers, is_right, splits, tune
        from lmsurvey_code.memory import LiveBytes
        from lmsurvey_code.parameter_efficient import learned
        from lmsurvey_code.training import TrainConfig

        parts, model = splits(), make_tuned(method)
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(model.net)}
        row = {"method": method, "learning_rate": learning_rate, "n_steps": n_steps, "seed": 0}
        row |= {"n_learned": sum(p.numel() for p in learned(model.net).values()), "weight_bytes": sum(held.values())}
        if n_steps:
            start = time.process_time()
            with LiveBytes() as live:
                config = TrainConfig(n_steps, 2, 1, learning_rate, warmup=min(4, n_steps // 4))
                losses = tune(model, parts["train"], config).losses
            row["step_seconds"] = round((time.process_time() - start) / n_steps, 2)
            row |= {"losses": [round(loss, 4) for loss in losses], "peak_bytes": row["weight_bytes"] + live.peak}
        row["items_loss"] = round(answer_loss(model, parts["items"]), 4)
        row["tasks_loss"] = round(answer_loss(model, parts["tasks"]), 4)
        if whole:
            asked = parts["test"][::3]
            row["right"] = [int(is_right(item, text)) for item, text in zip(asked, answers(model, asked), strict=True)]
            text = load_corpus().valid[-1].text[:10_000]
            row["valid"] = round(score(model, text).bits_per_byte, 4)
        return row

    return run


def tensors_of(net: Any) -> list[Any]:
    """All parameters and buffers of a network."""
    return [*net.parameters(), *net.buffers()]


def parameter_efficient() -> dict[str, Run]:
    """Short runs of each method with its rates, some with one pass, and two shorter ones that a chapter repeats."""
    runs = {"nothing": few_weights("nothing", 0.0, 0, whole=True)}
    for method, rates in RATES.items():
        for rate in rates:
            runs[f"{method}, 12 steps, {rate:g}"] = few_weights(method, rate, 12)
    for method, rate in PASSES:
        runs[f"{method}, one pass, {rate:g}"] = few_weights(method, rate, 36, whole=True)
    for method in ("LoRA, rank 8, queries and values", "prompt, 20 tokens"):
        runs[f"{method}, 3 steps"] = few_weights(method, RATES[method][0], 3)
    return runs


# ---- alignment ----

REWARD_STEPS, DPO_STEPS, RL_STEPS = 62, 62, 24  # of 8 pairs, or of 8 answers to 4 questions
ALIGN_RATE = 1e-3  # of LoRA of rank 8 on queries and values, in all of these runs


def align_config(n_steps: int, batch_size: int = 8, seed: int = 0) -> Any:
    """How all of these runs learn."""
    from lmsurvey_code.training import TrainConfig

    return TrainConfig(n_steps, batch_size, 1, ALIGN_RATE, warmup=min(4, n_steps // 4), decay=0.5, seed=seed)


def pairs_right(reward: Any) -> list[list[Any]]:
    """Of each pair of "test": its kind, and by how much the reward of the chosen answer is higher."""
    from lmsurvey_code.alignment import load_pairs

    pairs = load_pairs("test")
    chosen, rejected = (
        reward.score([p.question for p in pairs], [getattr(p, name) for p in pairs]) for name in ("chosen", "rejected")
    )
    return [[p.kind, round(float(d), 3)] for p, d in zip(pairs, chosen - rejected, strict=True)]


def fitted_reward(n_steps: int, n_pairs: int | None = None, seed: int = 0) -> tuple[Any, list[float]]:
    """A reward model after so many steps on the first `n_pairs` of "train", and its losses."""
    from lmsurvey_code.alignment import RewardModel, fit_reward, load_pairs
    from lmsurvey_code.parameter_efficient import adapted, add_lora
    from lmsurvey_code.training import set_seed

    set_seed(seed)
    reward = RewardModel(adapted(packaged(), add_lora))
    losses = fit_reward(reward, load_pairs("train")[:n_pairs], align_config(n_steps))
    return reward, [round(loss, 4) for loss in losses]


def reward_model(n_steps: int, n_pairs: int | None = None) -> Run:
    """A reward model; the one on all pairs of "train" is kept as a file of the book."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.alignment import DATA
        from lmsurvey_code.parameter_efficient import save_learned

        reward, losses = fitted_reward(n_steps, n_pairs)
        if n_pairs is not None:
            return {"losses": losses}
        save_learned(reward, DATA / "reward_model.safetensors")
        return {"losses": losses, "margins": pairs_right(reward)}

    return run


def best_of_many(n_questions: int = 24, n: int = 64, n_few: int = 50) -> Run:
    """n answers of the untuned LLM to each of some questions of "test", with two rewards and the goal.

    The second reward model has seen only the first `n_few` pairs.
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code.alignment import is_good, judged_questions, load_reward, sample_answers, texts_of, writer

        model, questions = packaged(), judged_questions("test")[:n_questions]
        texts = texts_of(model, sample_answers(writer(model), questions, n))
        asked = [question for question in questions for _ in range(n)]
        few, losses = fitted_reward(24, n_few)
        row: dict[str, Any] = {"n": n, "n_few": n_few, "losses": losses, "margins_few": pairs_right(few)}
        row["good"] = [int(is_good(q, t)) for q, t in zip(asked, texts, strict=True)]
        for name, reward in (("reward", load_reward(model)), ("reward_few", few)):
            scores = reward.score(asked, texts)
            row[name] = [round(float(score), 3) for score in scores]
            best = scores.reshape(-1, n).argmax(1)
            row[f"best_{name}"] = [texts[i * n + j] for i, j in enumerate(best)]
        return row

    return run


def aligned(method: str, n_steps: int, kl_weight: float = 0.05, n_pairs: int | None = None) -> Run:
    """The packaged LLM after "DPO", or after "PPO" or "GRPO" with the reward model; or "untuned".

    Unless `n_pairs` bounds the pairs of DPO: what it writes to the questions of "test", drawn and most likely, with
    the reward, the goal, and the KL to the untuned LLM in nats per answer; and bits per byte of a text of valid.
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code import alignment as al
        from lmsurvey_code.parameter_efficient import adapted, add_lora
        from lmsurvey_code.training import set_seed

        set_seed(0)
        base, row = packaged(), {"method": method, "n_steps": n_steps, "kl_weight": kl_weight}
        model, reward = adapted(base, add_lora), al.load_reward(base)
        if method == "DPO":
            losses = al.fit_dpo(model, base, al.load_pairs("train")[:n_pairs], align_config(n_steps))
            row["losses"] = [round(loss, 4) for loss in losses]
        elif method != "untuned":
            goals = []

            def followed(questions: Sequence[str], texts: Sequence[str]) -> Any:
                goals.append(float(np.mean([al.is_good(q, t) for q, t in zip(questions, texts, strict=True)])))
                return reward.score(questions, texts)

            rl = al.RLConfig(method.lower(), kl_weight=kl_weight)
            questions = al.judged_questions("train")
            history = al.reinforce(model, base, questions, followed, align_config(n_steps, 4), rl)
            row["history"] = [step | {"good": round(goal, 4)} for step, goal in zip(history, goals, strict=True)]
        return row | judged_writing(model, base, reward) if n_pairs is None else row

    return run


def gentle_dpo(learning_rate: float) -> Run:
    """DPO as in `aligned`, with another learning rate."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import alignment as al
        from lmsurvey_code.parameter_efficient import adapted, add_lora
        from lmsurvey_code.training import set_seed

        set_seed(0)
        base = packaged()
        model, config = adapted(base, add_lora), replace(align_config(DPO_STEPS), learning_rate=learning_rate)
        losses = [round(loss, 4) for loss in al.fit_dpo(model, base, al.load_pairs("train"), config)]
        row = {"method": "DPO", "n_steps": DPO_STEPS, "learning_rate": learning_rate, "losses": losses}
        return row | judged_writing(model, base, al.load_reward(base))

    return run


def imitated(learning_rate: float | None = None) -> Run:
    """The packaged LLM tuned on the chosen answers alone; and, with a learning rate, by DPO after that."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import alignment as al
        from lmsurvey_code.parameter_efficient import adapted, add_lora
        from lmsurvey_code.training import set_seed

        set_seed(0)
        base, pairs = packaged(), al.load_pairs("train")
        model, config = adapted(base, add_lora), align_config(DPO_STEPS)
        rows = al.rows_of(base, [p.question for p in pairs], [p.chosen for p in pairs])

        def loss_of(some: Any) -> Any:
            return -al.mean_of_answers(al.log_probs(model.net, some)[0], some.counted[:, 1:])

        losses = al.learn(model.net, config, lambda step: rows[step * 8 : step * 8 + 8], loss_of, base.device)
        if learning_rate is not None:
            reference = copy.deepcopy(model)
            losses += al.fit_dpo(model, reference, pairs, replace(config, learning_rate=learning_rate))
        row = {
            "method": "chosen answers",
            "learning_rate": learning_rate,
            "losses": [round(loss, 4) for loss in losses],
        }
        return row | judged_writing(model, base, al.load_reward(base))

    return run


def judged_writing(model: Any, base: Any, reward: Any) -> dict[str, Any]:
    """What `aligned` says of a model."""
    from lmsurvey_code import alignment as al

    questions, fast = al.judged_questions("test"), al.writer(model)
    row: dict[str, Any] = {}
    for name, seed in (("drawn", 0), ("likely", None)):
        found = al.sample_answers(fast, questions, 1, seed=seed)
        texts = row[name] = al.texts_of(model, found)
        row[f"good_{name}"] = [int(al.is_good(q, t)) for q, t in zip(questions, texts, strict=True)]
        row[f"reward_{name}"] = [round(float(score), 3) for score in reward.score(questions, texts)]
        if name == "drawn":
            rows = al.rows_of(model, questions, found)
            kl = al.reference_log_probs(model, rows) - al.reference_log_probs(base, rows)
            row["kl"] = [round(float(nats), 3) for nats in kl.sum(1)]
    text = load_corpus().valid[-1].text[:10_000]
    return row | {"valid": round(score(model, text).bits_per_byte, 4)}


def alignment() -> dict[str, Run]:
    """The reward model first, as others need its file; then the ways to use it; two short runs to repeat."""
    return {
        "reward model": reward_model(REWARD_STEPS),
        "reward model, 3 steps": reward_model(3, 24),
        "DPO, 3 steps": aligned("DPO", 3, n_pairs=24),
        "untuned": aligned("untuned", 0),
        "GRPO": aligned("GRPO", RL_STEPS),
        "best of n": best_of_many(),
        "DPO": aligned("DPO", DPO_STEPS),
        "PPO": aligned("PPO", RL_STEPS),
        "GRPO, no KL": aligned("GRPO", RL_STEPS, kl_weight=0.0),
        "DPO, gentle": gentle_dpo(2e-4),
        "chosen answers": imitated(),
        "chosen, then DPO": imitated(2e-4),
    }


# ---- quantization ----


def few_bits(model_name: str, method: str, bits: int, group: int | None) -> Run:
    """The network of the long run, or the packaged LLM, with the matrices of its blocks in few bits.

    The long run's is scored on the texts of valid, the LLM on the first 20,000 characters of the last one.
    """

    def run() -> dict[str, Any]:
        import torch

        from lmsurvey_code.gptq import in_few_bits
        from lmsurvey_code.neural import NeuralLM
        from lmsurvey_code.recipes import long_run
        from lmsurvey_code.training import join_documents

        model = long_run() if model_name == "long run" else packaged()
        length, corpus = (256 if model_name == "long run" else 512), load_corpus()
        tokens = join_documents(model.tokenizer, texts(corpus.train[-20:]), model.start_token)
        n = 32 if model_name == "long run" else 8
        windows = torch.as_tensor(tokens[: n * length]).view(n, length)
        start = time.perf_counter()
        matrices = [w for name, w in model.net.state_dict().items() if name.startswith("blocks.") and w.ndim == 2]
        n_weights, net, n_bits = sum(w.numel() for w in matrices), model.net, 32 * sum(w.numel() for w in matrices)
        if method != "float32":
            net, found = in_few_bits(model.net, windows, method, bits, group)
            n_bits = sum(matrix.n_bits for matrix in found.values())
        fit_seconds = time.perf_counter() - start
        lm = NeuralLM(net, model.tokenizer, model.block_size, model.start_token)
        valid = texts(corpus.valid) if model_name == "long run" else [corpus.valid[-1].text[:20_000]]
        return {
            **{"model": model_name, "method": method, "bits": bits, "group": group, "n_weights": n_weights},
            **{"bits_per_weight": round(n_bits / n_weights, 3), "fit_seconds": round(fit_seconds, 1)},
            "valid": round(score_documents(lm, valid).bits_per_byte, 4),
        }

    return run


def quantization() -> dict[str, Run]:
    """Both methods at several sizes, and each network as it is."""
    long = [(8, None), *((bits, group) for bits in (4, 3, 2) for group in (None, 64))]
    sizes = {"long run": long, "LLM": [(4, None), (4, 32), (3, 64), (2, 32)]}
    runs = {}
    for model_name, settings in sizes.items():
        runs[f"{model_name}, float32"] = few_bits(model_name, "float32", 32, None)
        for method in ("round to nearest", "GPTQ"):
            for bits, group in settings:
                runs[f"{model_name}, {method}, {bits} bits, group {group}"] = few_bits(model_name, method, bits, group)
    return runs


# ---- in_context: what the LLM answers, as the numbers of the labels in one string, before and after calibration ----


def shown_demonstrations(name: str, k: int, draw: int, how: str, drawn: str = "balanced") -> list[tuple[str, str]]:
    """k demonstrations of a task: as many of each label, or "random"; their labels as `how` says."""
    from lmsurvey_code import in_context as ic

    task, labels = ic.load_labelled(name), ic.labels_of(ic.load_labelled(name))
    shown = ic.balanced(task, k, draw) if drawn == "balanced" else task.draw(k, draw)
    if how == "symbols":
        return [(question, ic.SYMBOLS[name][labels.index(label)]) for question, label in shown]
    if how == "other texts":  # the labels stay, the questions are made up
        words = ic.load_labelled("recall").demonstrations[:k]
        return [(word, label) for (word, _), (_, label) in zip(words, shown, strict=True)]
    return ic.relabelled(shown, labels, how, draw)


def ask_items(name: str, prefixes: Any, how: str, drop: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    """The answers to all items of a task. `prefixes`: demonstrations for all, or one list of them for each item."""
    from lmsurvey_code import in_context as ic

    model, task = packaged(), ic.load_labelled(name)
    asked = ic.SYMBOLS[name] if how == "symbols" else ic.labels_of(task)
    with ic.without_heads(model.net, drop):
        if prefixes and isinstance(prefixes[0], list):
            prompts = [task.prompt(q, shown) for (q, _), shown in zip(task.items, prefixes, strict=True)]
            scores = ic.label_scores(model, prompts, asked)
            found = {"none": scores, "batch": ic.calibrated(scores, scores)}
        else:
            empty = ["N/A", *ic.random_words(task)]
            texts_ = [question for question, _ in task.items] + empty
            scores = ic.label_scores(model, [task.prompt(text, prefixes) for text in texts_], asked)
            scores, empty_scores = scores[: -len(empty)], scores[-len(empty) :]
            found = {"none": scores, "batch": ic.calibrated(scores, scores)}
            found["N/A"] = ic.calibrated(scores, empty_scores[:1])
            found["domain"] = ic.calibrated(scores, empty_scores[1:])
    right = [ic.labels_of(task).index(label) for _, label in task.items]
    truth_nats = scores[range(len(right)), right] - np.logaddexp.reduce(scores, axis=1)
    strings = {way: "".join(map(str, s.argmax(axis=1).tolist())) for way, s in found.items()}
    return {"guesses": strings, "nats": round(-float(truth_nats.mean()), 4)}


def ask_shown(k: int, draws: int, drop: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    """The task "recall": every demonstration of a prompt is asked again, in `draws` prompts; answers, true labels."""
    from lmsurvey_code import in_context as ic

    task = ic.load_labelled("recall")
    labels = ic.labels_of(task)
    guesses, batch, truth = "", "", ""
    with ic.without_heads(packaged().net, drop):
        for draw in range(draws):
            shown = ic.balanced(task, k, draw)
            scores = ic.label_scores(packaged(), [task.prompt(question, shown) for question, _ in shown], labels)
            guesses += "".join(map(str, scores.argmax(axis=1).tolist()))
            batch += "".join(map(str, ic.calibrated(scores, scores).argmax(axis=1).tolist()))
            truth += "".join(str(labels.index(label)) for _, label in shown)
    return {"guesses": {"none": guesses, "batch": batch}, "truth": truth}


@cache
def nearest_demonstrations(name: str, k: int) -> tuple[tuple[int, ...], ...]:
    """For each item, the k demonstrations most similar by the packaged encoder, the nearest one last."""
    from lmsurvey_code import in_context as ic
    from lmsurvey_code.masked import open_encoder

    task = ic.load_labelled(name)
    vectors = open_encoder(quiet=True).embed([question for question, _ in task.demonstrations + task.items])
    pool = vectors[: len(task.demonstrations)]
    return tuple(tuple(ic.most_similar(pool, vector, k)) for vector in vectors[len(pool) :])


@cache
def ranked_heads() -> list[tuple[int, int]]:
    """All heads of the packaged LLM, (layer, head), by how much they attend as induction heads do."""
    import torch

    from lmsurvey_code.emergence import head_scores

    net = packaged().net
    made = torch.Generator().manual_seed(0)
    rows = torch.randint(net.config.vocab_size, (8, 25), generator=made).repeat(1, 2)
    with torch.inference_mode():
        scores = head_scores(net, rows, 25)["prefix_matching"]
    return [divmod(i, net.config.n_head) for i in scores.flatten().argsort(descending=True).tolist()]


def dropped_heads(n: int, draw: int | None = None) -> list[tuple[int, int]]:
    """The n best induction heads; with a `draw`, n others at random, from the same layers as many as there."""
    best, rest = ranked_heads()[:n], ranked_heads()[32:]
    if draw is None:
        return best
    rng, chosen = np.random.default_rng(draw), []
    for layer, _ in best:
        same = [head for head in rest if head[0] == layer and head not in chosen]
        chosen.append(same[rng.integers(len(same))])
    return chosen


def in_context() -> dict[str, Run]:
    """Number, order, choice and labels of demonstrations, for two tasks; recall; and the same without some heads."""
    runs: dict[str, Run] = {}

    def add(name: str, group: str, k: int, draw: int, how: str = "true", drawn: str = "balanced") -> None:
        def run() -> dict[str, Any]:
            shown = shown_demonstrations(name, k, draw, how, drawn)
            about = {"task": name, "group": group, "k": k, "draw": draw, "how": how}
            return about | {"shown": [label for _, label in shown]} | ask_items(name, shown, how)

        runs[f"{name}, {group}: k={k} {how} draw={draw}"] = run

    def add_order(name: str, order: int) -> None:
        def run() -> dict[str, Any]:
            one_set = shown_demonstrations(name, 8, 0, "true")
            shown = [one_set[i] for i in np.random.default_rng(order).permutation(8)]
            about = {"task": name, "group": "order", "k": 8, "draw": order, "how": "true"}
            return about | {"shown": [label for _, label in shown]} | ask_items(name, shown, "true")

        runs[f"{name}, order: {order}"] = run

    def add_choice(name: str, choice: str, how: str) -> None:
        def run() -> dict[str, Any]:
            from lmsurvey_code import in_context as ic

            task = ic.load_labelled(name)
            labels, about = ic.labels_of(task), {"task": name, "group": "choice", "k": 8, "how": how, "choice": choice}
            pool = ic.relabelled(task.demonstrations, labels, "random" if how == "random" else "true")
            near = nearest_demonstrations(name, 8)
            nearest = "".join(str(labels.index(pool[row[-1]][1])) for row in near)
            if how == "symbols":
                pool = [(question, ic.SYMBOLS[name][labels.index(label)]) for question, label in pool]
            ordered = [row[::-1] if choice == "similar, nearest first" else row for row in near]
            shown = [[pool[i] for i in row] for row in ordered]
            return about | {"nearest": nearest} | ask_items(name, shown, how)

        runs[f"{name}, choice: {choice}, {how}"] = run

    def add_diverse(name: str, start: int) -> None:
        def run() -> dict[str, Any]:
            from lmsurvey_code import in_context as ic
            from lmsurvey_code.masked import open_encoder

            task = ic.load_labelled(name)
            pool = open_encoder(quiet=True).embed([question for question, _ in task.demonstrations])
            chosen = np.random.default_rng(start).permutation(ic.diverse(pool, 8, start))
            shown = [task.demonstrations[i] for i in chosen]
            about = {"task": name, "group": "choice", "k": 8, "draw": start, "how": "true", "choice": "diverse"}
            return about | {"shown": [label for _, label in shown]} | ask_items(name, shown, "true")

        runs[f"{name}, choice: diverse, start {start}"] = run

    def add_heads(n: int, draw: int | None) -> None:
        def run() -> dict[str, Any]:
            drop = dropped_heads(n, draw)
            found = {"recall": ask_shown(8, 25, drop)}
            for asked, k, how in (("kinds", 0, "true"), ("kinds", 8, "true"), ("kinds", 32, "symbols")):
                found[f"{asked}, k={k}, {how}"] = ask_items(asked, shown_demonstrations(asked, k, 0, how), how, drop)
            return {"group": "heads", "n": n, "draw": draw, "heads": drop, "found": found}

        runs[f"heads: {n} " + ("best" if draw is None else f"others draw={draw}")] = run

    def add_recall(k: int) -> None:
        runs[f"recall: k={k}"] = lambda: {"task": "recall", "group": "recall", "k": k} | ask_shown(k, 200 // k)

    for draw in range(6):
        for k in (0, 1, 2, 4, 8, 16) if draw == 0 else (1, 2, 4, 8, 16):
            add("kinds", "number", k, draw, drawn="random")
    for k in (4, 8, 16, 32):
        add_recall(k)
    for n, draw in ((0, None), (8, None), *((8, draw) for draw in range(5)), (4, None), (16, None)):
        add_heads(n, draw)
    for how in ("true", "random", "flipped", "symbols"):
        for draw in range(5):
            for k in (4, 8, 16, 32):
                add("kinds", "labels", k, draw, how)
    for draw in range(5):
        for k in (4, 8, 16, 32):
            add("sentiment", "labels", k, draw, "symbols")
    for order in range(12):
        add_order("kinds", order)
    for name in ("kinds", "sentiment"):
        for how in ("true", "random", "symbols"):
            add_choice(name, "similar", how)
        for start in range(5):
            add_diverse(name, start)
    for draw in range(5):
        add("kinds", "labels", 8, draw, "other texts")
        add("sentiment", "number", 8, draw, drawn="random")
    add_choice("kinds", "similar, nearest first", "true")
    return runs


# ---- chain of thought and planning: 300 items a row, as `reasoning.problems` and `held_out_puzzles` give them ----


@cache
def writing() -> Any:
    """A copy of the packaged LLM that writes faster."""
    from lmsurvey_code.alignment import writer

    return writer(packaged())


def worked(name: str, way: str, own_level: bool = True, seed: int | None = None) -> Run:
    """What the LLM writes about the problems of a task; a drawn row (with a seed) has those of the levels 2 to 4."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import reasoning as rs

        shown, asked = rs.problems(name)
        if seed is not None:
            asked = [problem for problem in asked if problem.level <= 4]
        about = {"task": name, "way": way, "own_level": own_level, "seed": seed}
        if way != "parts":
            return about | {"texts": rs.ask(writing(), shown, asked, way, seed, own_level)}
        pairs = rs.demonstrations(shown[: rs.N_SHOWN], way)

        def reply(questions: list[str]) -> list[str]:
            return rs.write_lines(writing(), [rs.FORM.prompt(q, pairs) for q in questions], 12) if questions else []

        return about | {"answers": rs.least_to_most(asked, reply)}

    return run


def changed_result(name: str) -> Run:
    """What the LLM answers after the right steps, and after steps whose last result was changed to a wrong one."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import reasoning as rs

        shown, asked = rs.problems(name)
        found: dict[str, Any] = {"task": name}
        for how in ("right", "changed"):
            prompts = []
            for problem in asked:
                pairs = rs.demonstrations([p for p in shown if p.level == problem.level], "steps")
                wrong = str(int(problem.answer) + 1) if name == "sums" else "BCA"["ABC".index(problem.answer)]
                steps = ", ".join(problem.steps).removesuffix(problem.answer)
                steps += problem.answer if how == "right" else wrong
                prompts.append(f"{rs.FORM.prompt(problem.question, pairs)} {steps}. The answer is")
            found[how] = [""] * len(asked)
            for level in rs.LEVELS:
                same = [i for i, problem in enumerate(asked) if problem.level == level]
                lines = rs.write_lines(writing(), [prompts[i] for i in same], 5)
                for i, line in zip(same, lines, strict=True):
                    found[how][i] = line
        return found

    return run


def llm_proposes(tree: bool) -> Run:
    """Puzzles of three numbers for the LLM: one step at a time in a tree, or four whole texts for each."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import reasoning as rs

        puzzles = rs.held_out_puzzles(3)
        rng = np.random.default_rng(0)
        shown = [rs.random_puzzle(3, rng) for _ in range(8)]
        pairs = [(p.prompt, p.solution.partition(" ,")[0] if tree else p.solution) for p in shown]

        def propose(prompts: list[str], number: int) -> list[str]:
            asked = [rs.FORM.prompt(prompt, pairs) for prompt in prompts]
            return rs.write_lines(writing(), asked, 12 if tree else 24, seed=number, temperature=1.0)

        if tree:
            solved, written = rs.tree_search(puzzles, propose, 4, 2)
            return {"k": 4, "breadth": 2, "solved": [int(x) for x in solved], "written": written}
        texts_ = [propose([p.prompt for p in puzzles], number) for number in range(4)]
        return {"texts": texts_}

    return run


def network_pretrained() -> dict[str, Any]:
    """The small network after its pre-training, kept as a file of the book."""
    from lmsurvey_code import reasoner

    net, losses = reasoner.pretrain(reasoner.PRETRAINING)
    reasoner.save(net)
    return {"losses": [round(float(np.mean(losses[i : i + 20])), 4) for i in range(0, len(losses), 20)]}


def solved_by(net: Any, n_numbers: int, n_samples: int = 32) -> dict[str, Any]:
    """Drawn texts about the held-out puzzles: for each puzzle, a digit for each text, and symbols of a text."""
    from lmsurvey_code import reasoner
    from lmsurvey_code.reasoning import held_out_puzzles, solves

    puzzles = held_out_puzzles(n_numbers)
    texts_ = reasoner.write(net, [puzzle.prompt for puzzle in puzzles for _ in range(n_samples)], seed=0)
    of_puzzle = [texts_[i : i + n_samples] for i in range(0, len(texts_), n_samples)]
    right = ["".join(str(int(solves(p, text))) for text in some) for p, some in zip(puzzles, of_puzzle, strict=True)]
    return {"right": right, "symbols": round(float(np.mean([len(text.split()) for text in texts_])), 2)}


def network_ways() -> dict[str, Any]:
    """What the small network solves after its pre-training: whole texts, a tree, and plans with a broken sign."""
    from lmsurvey_code import reasoner
    from lmsurvey_code.reasoning import held_out_puzzles, refine, tree_search

    net, found = reasoner.load(), {}

    def whole(prompts: list[str], number: int) -> list[str]:
        return reasoner.write(net, prompts, number)

    def one_step(prompts: list[str], number: int) -> list[str]:
        return reasoner.write(net, prompts, number, stop="\n,/")

    for n in (3, 4):
        puzzles = held_out_puzzles(n)
        found[f"{n} numbers"] = solved_by(net, n) | {"trees": {}}
        for k, breadth in ((2, 2), (4, 4), (8, 8)):
            solved, written = tree_search(puzzles, one_step, k, breadth)
            tree = {"solved": [int(x) for x in solved], "steps": round(float(np.mean(written)), 2)}
            found[f"{n} numbers"]["trees"][f"{k}, {breadth}"] = tree
    broken = held_out_puzzles(3, with_broken=True)
    for feedback in (True, False):
        found[f"feedback {feedback}"] = refine(broken, whole, 6, feedback)
    return found


def rewarded(net: Any, config: Any, every: int, first: int = 0) -> dict[str, Any]:
    """GRPO on a small network; every so many steps, what it writes to the held-out puzzles, a text for each."""
    from lmsurvey_code import reasoner
    from lmsurvey_code.reasoning import held_out_puzzles, solves

    puzzles, curve = {n: held_out_puzzles(n) for n in (3, 4)}, []

    def follow(step: int) -> None:
        if step % every:
            return
        row: dict[str, Any] = {"step": first + step}
        for n, some in puzzles.items():
            texts_ = reasoner.write(net, [p.prompt for p in some], 0)
            row[f"right {n}"] = round(float(np.mean([solves(*pair) for pair in zip(some, texts_, strict=True)])), 4)
            firsts = [text.partition(" /")[0] for text in texts_]
            row[f"first {n}"] = round(float(np.mean([solves(*p) for p in zip(some, firsts, strict=True)])), 4)
            row[f"attempts {n}"] = round(float(np.mean([text.count("/") + 1 for text in texts_])), 3)
            row[f"symbols {n}"] = round(float(np.mean([len(text.split()) for text in texts_])), 2)
        curve.append(row)

    history = reasoner.grpo(net, config, follow=follow)
    follow(config.n_steps)
    right = {f"{n} numbers": solved_by(net, n) for n in puzzles}
    return {"curve": curve, "rewards": [round(row["reward"], 3) for row in history]} | right


def network_rewarded(seed: int) -> Run:
    """GRPO on the small network; the one of seed 0 is kept as a file of the book."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import reasoner

        net = reasoner.load()
        found = rewarded(net, replace(reasoner.REWARDED, seed=seed), every=20)
        if seed == 0:
            reasoner.save(net, reasoner.WEIGHTS_REWARDED)
        return {"seed": seed} | found

    return run


def network_rewarded_longer() -> dict[str, Any]:
    """320 more steps of GRPO, from the weights that the run of seed 0 left."""
    from lmsurvey_code import reasoner

    config = replace(reasoner.REWARDED, n_steps=320, seed=2)
    return rewarded(reasoner.load(reasoner.WEIGHTS_REWARDED), config, every=40, first=reasoner.REWARDED.n_steps)


def reasoning_runs() -> dict[str, Run]:
    """The LLM in several ways on sums and boxes and puzzles; the small network before and after its rewards."""
    runs: dict[str, Run] = {}
    for name in ("sums", "boxes"):
        runs |= {f"{name}, {way}": worked(name, way) for way in ("direct", "steps", "parts")}
    runs["sums, steps, demonstrations of all lengths"] = worked("sums", "steps", own_level=False)
    runs |= {f"sums, steps, drawn {seed}": worked("sums", "steps", seed=seed) for seed in range(5)}
    runs |= {f"{name}, changed result": changed_result(name) for name in ("sums", "boxes")}
    runs |= {"puzzles, LLM, whole texts": llm_proposes(False), "puzzles, LLM, tree": llm_proposes(True)}
    runs |= {"network, pre-training": network_pretrained, "network, ways": network_ways}
    runs |= {f"network, GRPO, seed {seed}": network_rewarded(seed) for seed in (0, 1)}
    runs["network, GRPO, 320 more steps"] = network_rewarded_longer
    return runs


# ---- retrieval: what the LLM answers; an answer a question, in the order of `load_questions` ----

N_ATTACKED = 50  # of the questions that are not for choosing settings


@cache
def engines() -> tuple[Any, Any]:
    """The search by words and the search by meaning, over all passages."""
    from lmsurvey_code import retrieval as rt
    from lmsurvey_code.masked import open_encoder

    texts_ = [str(passage) for passage in rt.corpus_passages()]
    return rt.BM25(texts_), rt.Dense(rt.load_vectors(rt.VECTORS, texts_), open_encoder(quiet=True))


def three_best(question: str) -> dict[str, list[int]]:
    """The numbers of the three best passages by each of three searches."""
    from lmsurvey_code.retrieval import fuse

    by_words, by_meaning = (engine.search(question, 100) for engine in engines())
    lists = {"BM25": by_words[:3], "dense": by_meaning[:3], "hybrid": fuse([by_words, by_meaning], 3)}
    return {name: found.tolist() for name, found in lists.items()}


def shown_part(question: str, number: int) -> str:
    """What the LLM gets to see of a passage: the two sentences that fit the question best."""
    from lmsurvey_code.answering import focus
    from lmsurvey_code.retrieval import corpus_passages

    return focus(question, corpus_passages()[number].text)


def right_passage(question: Any) -> int:
    """The number of the passage that holds the evidence of an answered question."""
    from lmsurvey_code.retrieval import corpus_passages

    return next(passage.number for passage in corpus_passages() if question.evidence in passage.text)


def written(prompts: list[str], max_new_tokens: int = 12) -> dict[str, Any]:
    """What the LLM writes after each prompt, and log p of it."""
    from lmsurvey_code.answering import write_answers

    found = write_answers(packaged(), prompts, max_new_tokens)
    return {"answers": [a.text for a in found], "log_probs": [round(a.log_prob, 3) for a in found]}


def closed_book(refuse: bool) -> Run:
    """All questions without a passage."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.answering import closed_prompt, load_questions

        return written([closed_prompt(question.text, refuse) for question in load_questions()])

    return run


def one_at_a_time() -> dict[str, Any]:
    """Each question with each passage that one of the searches puts among its three best, and with the right one."""
    from lmsurvey_code.answering import load_questions, passage_prompt

    pairs = []
    for i, question in enumerate(load_questions()):
        numbers = [number for found in three_best(question.text).values() for number in found]
        if question.kind == "answered":
            numbers.append(right_passage(question))
        pairs += [(i, question.text, number) for number in dict.fromkeys(numbers)]
    prompts = [passage_prompt(text, shown_part(text, number)) for _, text, number in pairs]
    return {"pairs": [[i, number] for i, _, number in pairs]} | written(prompts)


def together() -> dict[str, Any]:
    """The three best passages in one prompt, with numbers that an answer shall cite."""
    from lmsurvey_code.answering import load_questions, numbered_prompt

    asked = [question.text for question in load_questions()]
    numbers = [three_best(text)["BM25"] for text in asked]
    shown = [[shown_part(text, n) for n in found] for text, found in zip(asked, numbers, strict=True)]
    prompts = [numbered_prompt(text, parts) for text, parts in zip(asked, shown, strict=True)]
    return {"numbers": numbers} | written(prompts, 16)


def may_refuse() -> dict[str, Any]:
    """The best passage by BM25, with the instruction and examples to say that the answer is not known."""
    from lmsurvey_code.answering import load_questions, passage_prompt

    asked = [question.text for question in load_questions()]
    numbers = [three_best(text)["BM25"][0] for text in asked]
    shown = [shown_part(text, number) for text, number in zip(asked, numbers, strict=True)]
    return {"numbers": numbers} | written(
        [passage_prompt(q, t, refuse=True) for q, t in zip(asked, shown, strict=True)]
    )


def attacked(attack: str, defence: str) -> Run:
    """The right passage with an order planted in it, or not; as it is, between marks, or without such sentences."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.answering import drop_orders, load_questions, passage_prompt, plant, to_choose

        asked = [q for q, chosen in zip(load_questions(), to_choose(load_questions()), strict=True) if not chosen]
        asked = [question for question in asked if question.kind == "answered"][:N_ATTACKED]
        prompts = []
        for question in asked:
            shown = shown_part(question.text, right_passage(question))
            shown = shown if attack == "none" else plant(attack, question.text, shown)
            shown = drop_orders(shown) if defence == "dropped" else shown
            prompts.append(passage_prompt(question.text, shown, marks=defence == "marks"))
        return {"attack": attack, "defence": defence} | written(prompts)

    return run


def with_tools(names: tuple[str, ...], task: str) -> Run:
    """Logs of the agent with some tools: 100 questions of arithmetic, or 50 of these and 50 about the addresses."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import agent as ag
        from lmsurvey_code.answering import load_questions, search_tool, to_choose
        from lmsurvey_code.retrieval import corpus_passages

        engine, passages = engines()[0], [passage.text for passage in corpus_passages()]
        tools = {"calculate": ag.calculate, "python": ag.python, "search": search_tool(engine, passages)}
        asked = [question for question, _ in ag.word_problems(100)]
        if task == "mixed":
            questions = zip(load_questions(), to_choose(load_questions()), strict=True)
            asked = asked[:50] + [q.text for q, chosen in questions if not chosen and q.kind == "answered"][:50]
        intro, chosen_tools = ag.worked_examples(names), {name: tools[name] for name in names}
        agents = [ag.agent(question, chosen_tools, intro) for question in asked]
        return {"logs": ag.run_agents(agents, lambda prompts: written(prompts, 24)["answers"])}

    return run


def retrieval() -> dict[str, Run]:
    """Closed book and open book, refusals, attacks and defences, tools."""
    runs: dict[str, Run] = {"closed book": closed_book(False), "closed book, may refuse": closed_book(True)}
    runs |= {"one passage at a time": one_at_a_time, "three passages together": together}
    runs["one passage, may refuse"] = may_refuse
    for attack in ("none", "order", "false fact", "form", "other words"):
        for defence in ("none", "marks", "dropped"):
            runs[f"attack: {attack}, defence: {defence}"] = attacked(attack, defence)
    runs["arithmetic: no tool"] = with_tools((), "arithmetic")
    runs["arithmetic: calculate"] = with_tools(("calculate",), "arithmetic")
    runs["arithmetic: python"] = with_tools(("python",), "arithmetic")
    runs["mixed: calculate, search"] = with_tools(("calculate", "search"), "mixed")
    return runs


# ---- evaluation in full ----

LETTERS = (" A", " B", " C", " D")
ASKS = {"capital": "What is the capital of {}?", "symbol": "What is the chemical symbol of {}?"}
JUDGE = (
    "Which answer to the question is better?\n\nQuestion: {}\n\nAnswer A: {}\n\nAnswer B: {}\n\nReply with A or B only."
)
LONG = "The answer to this question is: {}. I have read the question with care, and I hope that this is of help to you."


def report_card() -> dict[str, Any]:
    """The command, in a process of its own, and what its file of answers holds; the card becomes a page of the site."""
    import subprocess
    import tempfile

    from lmsurvey_code.files import whole_file
    from lmsurvey_code.harness import ask
    from lmsurvey_code.report_card import right  # from there, so that a change of the card makes this row old
    from lmsurvey_code.suite import load_suite

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        report, answers = Path(folder) / "card.html", Path(folder) / "card.answers.jsonl"
        command = [sys.executable, "-m", "lmsurvey_code.evaluation", "--model", "smollm2-135m", "--report", str(report)]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT)
        seconds = time.perf_counter() - start
        for ability, task in load_suite().items():
            given = ask(packaged(), task, answers)  # from the file: nothing is asked
            rows[ability] = {
                "task": task.name,
                "n_read": sum(answer.n_read for answer in given),
                "n_written": sum(answer.n_written for answer in given),
                "seconds_asking": round(sum(answer.seconds for answer in given), 1),
                "right": [int(value) for value in right(task, given)],
                "per_character": [int(value) for value in right(task, given, normalised=True)],
                "answers": [[round(v, 3) for v in a.log_probs] if task.is_choice else a.text for a in given],
            }
        with whole_file(ROOT / "book" / "_static" / "card.html") as partial:
            partial.write_bytes(report.read_bytes())
    return {"command_seconds": round(seconds, 1), "abilities": rows}


def form(name: str, turn: int = 0) -> Run:
    """The facts as a "statement", a "question", or with "letters"; the options moved on by `turn` places."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.harness import EvalTask, Item, ask, chosen
        from lmsurvey_code.suite import SAYS, load_facts, with_others

        items = []
        for i, ((kind, about, answer), options) in enumerate(zip(load_facts(), with_others(load_facts()), strict=True)):
            options = (*options[turn:], *options[:turn])
            question = (SAYS if name == "statement" else ASKS)[kind].format(about)
            listed = "".join(f"{letter.strip()}. {o}\n" for letter, o in zip(LETTERS, options, strict=True))
            context = {
                "statement": question,
                "question": f"Question: {question}\nAnswer:",
                "letters": f"Question: {question}\n{listed}Answer:",
            }[name]
            choices = LETTERS if name == "letters" else tuple(f" {option}" for option in options)
            items.append(Item(str(i), context, choices, options.index(answer)))
        task = EvalTask(name, tuple(items))
        picked = chosen(task, ask(packaged(), task))
        return {
            "form": name,
            "turn": turn,
            "picked": picked,
            "right": [int(p == item.answer) for p, item in zip(picked, items, strict=True)],
        }

    return run


def verdicts(name: str) -> Run:
    """log p("A") - log p("B") of the judge for 200 pairs of answers, in both orders.

    "right against wrong": both short. "long against short": the right answer, in a sentence and as it is. "long and
    wrong against short and right". The first named stands first in the first order.
    """

    def run() -> dict[str, Any]:
        from lmsurvey_code.harness import EvalTask, Item, ask
        from lmsurvey_code.prompting import chat_prompt

        items = []
        for i, (question, true, false) in enumerate(judged_pairs()):
            one, two = {
                "right against wrong": (true, false),
                "long against short": (LONG.format(true), true),
                "long and wrong against short and right": (LONG.format(false), true),
            }[name]
            for a, b in ((one, two), (two, one)):
                prompt = chat_prompt(packaged(), JUDGE.format(question, a, b))
                items.append(Item(f"{i} {len(items) % 2}", prompt, ("A", "B"), 0))
        found = [a.log_probs[0] - a.log_probs[1] for a in ask(packaged(), EvalTask(name, tuple(items)))]
        return {"pair": name, "first": [round(v, 3) for v in found[::2]], "second": [round(v, 3) for v in found[1::2]]}

    return run


def judged_pairs() -> list[tuple[str, str, str]]:
    """(question, right answer, the answer to another question of the same kind) of 200 instructions."""
    from lmsurvey_code.adaptation import splits

    pairs, items = [], splits()["test"]
    for i, item in enumerate(items):
        others = [o.output for o in (*items[i + 1 :], *items[:i]) if o.kind == item.kind and o.output != item.output]
        pairs.append((item.question, item.output, others[0]))
    return pairs[:200]


TABLES: dict[str, Callable[[], dict[str, Run]]] = {
    "one_axis": lambda: {
        **{f"characters, n = {n}": ngram("characters", n) for n in (1, 3, 9, 12)},
        **{f"words, n = {n}": ngram("words", n) for n in (1, 2, 4, 5)},
        **{f"words, n = 4, newest {share:.0%}": ngram("words", 4, share) for share in (0.01, 0.1, 0.3)},
        "words, n = 5, newest 30%": ngram("words", 5, 0.3),
        "characters, n = 12, newest 30%": ngram("characters", 12, 0.3),
        "neural probabilistic LM": small_network("feed-forward"),
        "LSTM": small_network("LSTM"),
        **{kind: small_network(kind) for kind in ("RNN", "GRU", "LSTM")},
        "Transformer": small_network("Transformer"),
        **{f"Transformer, {n} times as long": small_network("Transformer", n) for n in (3, 10)},
        "Transformer, 6 times, more old texts": small_network("Transformer", 6, recency=2.0),
        "Transformer, long run": shipped_alone,
        "Transformer, long run, and counting": shipped_and_counting,
        "SmolLM2-135M-Instruct": packaged_llm,
    },
    "memory": memory,
    "prompting_labels": prompting_labels,
    "prompting_answers": prompting_answers,
    "evaluating": evaluating,
    "evaluating_years": evaluating_years,
    "tokens": tokens,
    "decoding": lambda: {name: decoding_run(name) for name in ("people", *DECODING, "beam 4")},
    "variants": variants,
    "training": training_runs,
    "scaling": scaling,
    "scaling_prediction": scaling_prediction,
    "scaling_repeated": scaling_repeated,
    "data": data_runs,
    "fine_tuning": fine_tuning_runs,
    "emergence": emergence,
    "long_context": long_context,
    "parameter_efficient": parameter_efficient,
    "alignment": alignment,
    "quantization": quantization,
    "instruction_tuning": instruction_tuning,
    "in_context": in_context,
    "reasoning": reasoning_runs,
    "retrieval": retrieval,
    "evaluation_card": lambda: {"card": report_card},
    "evaluation_forms": lambda: {
        "statement": form("statement"),
        "question": form("question"),
        **{f"letters, turned by {turn}": form("letters", turn) for turn in range(4)},
    },
    "evaluation_judge": lambda: {
        name: verdicts(name)
        for name in ("right against wrong", "long against short", "long and wrong against short and right")
    },
    "long_run_search": lambda: {
        "newest 10%, dropout 0.1": trial(0.1, 0.1),
        "newest 10%, dropout 0.1, weight decay 0.1": trial(0.1, 0.1, weight_decay=0.1),
        **{f"newest 10%, dropout {p}": trial(0.1, p) for p in (0.3, 0.0)},
        "newest 20%": trial(0.2),
        "newest 20%, dropout 0.1": trial(0.2, 0.1),
    },
    "long_run": lambda: {"long run": long_run},
}


def sources_of(function: Callable) -> list[str]:
    """The source of a function and of all functions and classes of this file that it names, directly or not."""
    found, waiting = {}, [function]
    while waiting:
        function = waiting.pop()
        source = found[function.__name__] = textwrap.dedent(inspect.getsource(function))
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)} - set(found)
        waiting += [
            value
            for name in names
            if isinstance(value := inspect.unwrap(globals().get(name, name)), FunctionType | type)
            and value.__module__ == __name__
        ]
    return [found[name] for name in sorted(found)]


def code_of(run: Run) -> str:
    """Hash of a run and of all modules that it leans on: a row made by other code is made again."""
    sources = sources_of(run)
    if any("measured(" in source for source in sources):
        sources.append("from lmsurvey_code import corpus, evaluation, language_model")
    return code_hash(new_notebook(cells=[new_code_cell(source) for source in sources]))


def agreement(old: Any, new: Any) -> list[bool]:
    """Whether each number of a row (within 1%, or 0.02 where it is small) and each character is as before."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in old if key not in ("run", "code", "machine", "seconds", "cpu_seconds", "fit_seconds")]
        return [same for key in keys for same in agreement(old[key], new.get(key))]
    if isinstance(old, list | tuple | str) and isinstance(new, list | tuple | str) and len(old) == len(new):
        if len(old) == 1 and isinstance(old, str):
            return [old == new]
        return [same for a, b in zip(old, new, strict=True) for same in agreement(a, b)]
    if isinstance(old, float | int) and isinstance(new, float | int):
        return [math.isclose(old, new, rel_tol=0.01, abs_tol=0.02)]
    return [old == new] * max(1, len(str(old)))


def confirm(name: str, chosen: list[str]) -> None:
    """Repeat some runs of a table; where 99% of what they give is as recorded, its rows of these kinds stay.

    For changes of the code that should change no result, such as a faster path. A kind is the function of a run.
    """
    runs, rows = TABLES[name](), {row["run"]: row for row in recorded(name)}
    for run in chosen:
        start, found = time.perf_counter(), agreement(rows[run], json.loads(json.dumps(runs[run]())))
        print(f"{run}: {sum(found)} of {len(found)} as before ({time.perf_counter() - start:.0f} s)", flush=True)
        if sum(found) < 0.99 * len(found):
            raise SystemExit("the results changed: make them again")
    kinds = {runs[run].__qualname__ for run in chosen}
    kept = [run for run in rows if run in runs and runs[run].__qualname__ in kinds]
    for run in kept:
        record(name, rows[run] | {"code": code_of(runs[run])})
    print(f"{name}: {len(kept)} rows of {len(rows)} confirmed")


def main() -> None:
    """Make the missing rows of one table."""
    if len(sys.argv) < 2 or sys.argv[1] not in TABLES:
        raise SystemExit(f"usage: make results NAME=...; tables: {', '.join(TABLES)}")
    name = sys.argv[1]
    if sys.argv[2:]:
        return confirm(name, sys.argv[2:])
    done = {row["run"]: row["code"] for row in recorded(name)} if (FOLDER / f"{name}.jsonl").exists() else {}
    runs = TABLES[name]()
    codes = {run: code_of(make) for run, make in runs.items()}  # now: this file may be edited while it runs
    for run, make in runs.items():
        if done.get(run) == codes[run]:
            print(f"{run}: there")
            continue
        start = time.perf_counter()
        row = {"run": run, "code": codes[run], "machine": machine()} | make()
        record(name, row | {"seconds": round(time.perf_counter() - start, 1)})
        print(f"{run}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
