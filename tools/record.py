"""Record the runs that take longer than a notebook may: `python tools/record.py NAME` (or `make results NAME=...`).

A run whose row is there, made by the code of today, is not repeated: an interrupted recording goes on where it stopped.

one_axis    every model of the book on the texts of valid and, once, on the address of 2026
"""

import inspect
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

from nbformat.v4 import new_code_cell, new_notebook

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.evaluation import bits_per_byte_interval
from lmsurvey_code.language_model import LanguageModel, score, score_documents
from lmsurvey_code.results import FOLDER, machine, record, recorded
from tools.staleness import code_hash

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


def ngram(unit: str, order: int) -> Run:
    """Modified Kneser-Ney over "words" or "characters"."""

    def run() -> dict[str, Any]:
        from lmsurvey_code.ngram import KneserNey, NgramCounts
        from lmsurvey_code.tokenizers import CharTokenizer, WordTokenizer

        train = texts(load_corpus().train)
        tokenizer = CharTokenizer(train) if unit == "characters" else WordTokenizer(train, min_count=2)
        start = time.perf_counter()
        counts = NgramCounts(train, tokenizer, order)
        model = KneserNey(counts, modified=True)
        fit = {"fit_seconds": round(time.perf_counter() - start, 1), "n_stored": sum(map(len, counts.keys))}
        return fit | measured(model)

    return run


def small_network(kind: str) -> Run:
    """The "LSTM" or the "Transformer" of the book, trained as its chapter does."""

    def run() -> dict[str, Any]:
        from lmsurvey_code import recipes
        from lmsurvey_code.neural import NeuralLM
        from lmsurvey_code.training import join_documents, train

        corpus, tokenizer = load_corpus(), recipes.small_tokenizer()
        if kind == "LSTM":
            net, config, window = recipes.small_lstm(), recipes.LSTM_TRAINING, None
        else:
            net, config, window = (
                recipes.small_transformer(),
                recipes.TRANSFORMER_TRAINING,
                recipes.TRANSFORMER.block_size,
            )
        start = time.perf_counter()
        train(net, join_documents(tokenizer, texts(corpus.train)), config)
        fit = {
            "fit_seconds": round(time.perf_counter() - start, 1),
            "n_params": sum(p.numel() for p in net.parameters()),
            "n_train_tokens": config.n_steps * config.batch_size * config.block_size,
            "seed": config.seed,
        }
        return fit | measured(NeuralLM(net, tokenizer, window))

    return run


def packaged_llm() -> dict[str, Any]:
    """The LLM that comes with the book."""
    from lmsurvey_code.llm import open_llm

    model = open_llm("smollm2-135m", quiet=True)
    return {"n_params": sum(p.numel() for p in model.net.parameters())} | measured(model)


TABLES: dict[str, dict[str, Run]] = {
    "one_axis": {
        "characters, n = 9": ngram("characters", 9),
        "words, n = 4": ngram("words", 4),
        "LSTM": small_network("LSTM"),
        "Transformer": small_network("Transformer"),
        "SmolLM2-135M-Instruct": packaged_llm,
    }
}


def code_of(run: Run) -> str:
    """Hash of a run and of all modules that it leans on: a row made by other code is made again."""
    shared = "from lmsurvey_code import corpus, evaluation, language_model"
    sources = [textwrap.dedent(inspect.getsource(function)) for function in (run, measured)]
    return code_hash(new_notebook(cells=[new_code_cell(source) for source in (shared, *sources)]))


def main() -> None:
    """Make the missing rows of one table."""
    if len(sys.argv) != 2 or sys.argv[1] not in TABLES:
        raise SystemExit(f"usage: make results NAME=...; tables: {', '.join(TABLES)}")
    name = sys.argv[1]
    done = {row["run"]: row["code"] for row in recorded(name)} if (FOLDER / f"{name}.jsonl").exists() else {}
    for run, make in TABLES[name].items():
        code = code_of(make)
        if done.get(run) == code:
            print(f"{run}: there")
            continue
        start = time.perf_counter()
        row = {"run": run, "code": code, "machine": machine()} | make()
        record(name, row | {"seconds": round(time.perf_counter() - start, 1)})
        print(f"{run}: {row['test']} bits per byte, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
