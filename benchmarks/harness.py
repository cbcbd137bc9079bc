"""A task with choices on the packaged LLM: our harness beside lm-evaluation-harness, which runs it in transformers.

1,000 questions on paragraphs of the corpus, each with a context of its own and four answers of a few tokens; no
demonstrations, which only ours would read once. Both must find the same log-probabilities. The questions are asked in
four parts, ours and theirs in turn, and the seconds of a side are the sum over the parts.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.harness import EvalTask, Item, ask
from lmsurvey_code.llm import GGUF_FILE, LLM, SMOLLM2, open_llm

N_ITEMS, N_PARTS = 1000, 4


def questions(n: int = N_ITEMS) -> list[Item]:
    """In which year was this said? Paragraphs of all years, in random order."""
    rng, items = np.random.default_rng(0), []
    documents = [document for document in load_corpus().train if len(document.paragraphs) > 12]
    for i in range(n):
        document = documents[rng.integers(len(documents))]
        long = [text for text in document.paragraphs if len(text) > 250]
        text = long[rng.integers(len(long))][:250].rpartition(" ")[0]
        years = sorted({document.year, *rng.choice([d.year for d in documents if d.year != document.year], 8).tolist()})
        years = [document.year, *[year for year in years if year != document.year][:3]]
        choices = [f" It was said in {years[j]}" for j in rng.permutation(4)]
        context = f"{text} ...\nQuestion: When was this said?\nAnswer:"
        items.append(Item(str(i), context, tuple(choices), choices.index(f" It was said in {document.year}")))
    return items


def ours(model: LLM, items: Sequence[Item]) -> np.ndarray:
    """Log-probabilities (n_items, 4)."""
    return np.array([answer.log_probs for answer in ask(model, EvalTask("years", tuple(items)))])


def theirs(lm: Any, items: Sequence[Item]) -> np.ndarray:
    """The same, (n_items, 4)."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (item.context, choice), j)
        for item in items
        for j, choice in enumerate(item.choices)
    ]
    return np.array([value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]).reshape(-1, 4)


def rows() -> list[dict[str, Any]]:
    """Items per second."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        return [{"name": "questions with four answers", "missing": f"not installed: {error.name}"}]
    model, items = open_llm("smollm2-135m", quiet=True), questions()
    hf = AutoModelForCausalLM.from_pretrained(SMOLLM2.folder(), gguf_file=GGUF_FILE, dtype=torch.float32)
    lm = HFLM(hf, tokenizer=model.tokenizer.hf, batch_size=16, device="cpu", prefix_token_id=model.start_token)
    calls = {"ours": lambda part: ours(model, part), "theirs": lambda part: theirs(lm, part)}
    seconds = dict.fromkeys(calls, 0.0)
    for call in calls.values():  # once, to warm up
        call(items[:8])
    for start in range(0, N_ITEMS, N_ITEMS // N_PARTS):
        found = {}
        for who, call in calls.items():
            begun = time.perf_counter()
            found[who] = call(items[start : start + N_ITEMS // N_PARTS])
            seconds[who] += time.perf_counter() - begun
        np.testing.assert_allclose(found["ours"], found["theirs"], atol=1e-3)
    return [
        {
            "name": "1,000 questions with four answers, packaged LLM",
            "unit": "items/s",
            "ours": N_ITEMS / seconds["ours"],
            "peer": N_ITEMS / seconds["theirs"],
            "peer_name": f"lm-evaluation-harness {lm_eval.__version__}, batches of 16",
        }
    ]
