"""How fast word vectors are learned here, beside gensim: raw words per second over five epochs of the train texts.

`python -m benchmarks.word_vectors` prints the rows; it needs the extra `peers`. Ours and gensim run in turn, three
times each, in one process; a row holds the medians. `LMSURVEY_THREADS` (default: all cores) is the number of our
threads and of gensim's workers. The settings are those of `WordVectorConfig`, which are gensim's too.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.word_vectors import WordVectorConfig, paragraph_words, train_word_vectors

N_RUNS = 3


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rows() -> list[dict]:
    """One row for each form of word2vec: name, unit, ours, peer, peer_name."""
    from gensim import __version__
    from gensim.models import Word2Vec

    n_threads = int(os.environ.get("LMSURVEY_THREADS", os.cpu_count() or 1))
    paragraphs = [words for words in paragraph_words(texts(load_corpus().train)) if words]
    found, before = [], torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        for kind in ("skip-gram", "cbow"):
            config = WordVectorConfig(kind=kind)
            settings = {
                name: getattr(config, name)
                for name in ("vector_size", "window", "negative", "sample", "min_count", "epochs")
            } | {"sg": int(kind == "skip-gram"), "workers": n_threads}
            times: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(N_RUNS):
                times["ours"].append(seconds(lambda config=config: train_word_vectors(paragraphs, config)))
                times["peer"].append(seconds(lambda settings=settings: Word2Vec(paragraphs, **settings)))
            n_words = config.epochs * sum(map(len, paragraphs))
            found.append(
                {"name": f"{kind} training, {n_threads} threads", "unit": "raw words per second"}
                | {who: round(n_words / statistics.median(times[who])) for who in times}
                | {"peer_name": f"gensim {__version__}, {n_threads} workers"}
            )
    finally:
        torch.set_num_threads(before)
    return found


if __name__ == "__main__":
    for row in rows():
        print(row | {"ratio": round(row["ours"] / row["peer"], 2)})
