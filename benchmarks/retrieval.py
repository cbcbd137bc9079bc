"""Search over all paragraphs of the corpus: ours and bm25s, one thread, the ten best for each query.

The queries are the questions of the chapter *Tools and retrieval*, 700 in a round. bm25s gets their words cut before;
ours cuts them inside the measured call. The search by vectors stands beside the product of the same matrices alone. To
make the vectors of queries costs more than to search with them, so it has its own row.
"""

from typing import Any

import numpy as np

from benchmarks.timing import in_turn
from lmsurvey_code.answering import load_questions
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.masked import open_encoder
from lmsurvey_code.retrieval import BM25, VECTORS, best, corpus_passages, load_vectors, words_of


def rows() -> list[dict[str, Any]]:
    """Queries in a second and seconds for the index, beside the library; then the search by vectors."""
    import bm25s

    paragraphs = [text for document in load_corpus().documents for text in document.paragraphs]
    queries = [question.text for question in load_questions()] * 4
    words, library = [words_of(text) for text in queries], f"bm25s {bm25s.__version__}"

    def theirs_index() -> Any:
        engine = bm25s.BM25(method="lucene")
        engine.index([words_of(text) for text in paragraphs], show_progress=False)
        return engine

    index, index_peer = in_turn(lambda: BM25(paragraphs), theirs_index)
    ours, theirs = BM25(paragraphs), theirs_index()
    search, search_peer = in_turn(
        lambda: [ours.search(query, 10) for query in queries],
        lambda: theirs.retrieve(words, k=10, show_progress=False, n_threads=0),
    )
    texts = [str(passage) for passage in corpus_passages()]
    vectors, encoder = load_vectors(VECTORS, texts), open_encoder(quiet=True)
    asked = encoder.embed(queries)

    def nearest() -> list[np.ndarray]:
        blocks = (asked[start : start + 50] @ vectors.T for start in range(0, len(asked), 50))
        return [best(scores, 10) for block in blocks for scores in block]

    dense, product, embedding = in_turn(nearest, lambda: asked @ vectors.T, lambda: encoder.embed(queries[:175]))
    n = len(queries)
    return [
        _row(f"BM25 index of {len(paragraphs):,} paragraphs", "s", index, index_peer, f"{library}, words cut by ours"),
        _row("BM25 search, 10 best", "queries/s", n / search, n / search_peer, f"{library}, words cut beforehand"),
        _row(
            f"dense search of {len(texts):,} passages, 10 best, vectors of queries given",
            "queries/s",
            *(n / dense, n / product),
            "the product of the two matrices alone",
        ),
        _row(
            "dense search with the vectors of queries made",
            "queries/s",
            *(1 / (dense / n + embedding / 175), n / search),
            "ours, BM25 search of the paragraphs",
        ),
    ]


def _row(name: str, unit: str, ours: float, peer: float, peer_name: str) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name}
