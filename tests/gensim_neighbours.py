"""Write gensim_neighbours.json: what gensim finds on the train texts, for test_word_vectors.py.

`python tests/gensim_neighbours.py`, with the extra `peers` installed; about a minute. gensim 4.4.0, skip-gram, one
worker, and the settings in SETTINGS: those of `WordVectorConfig`.
"""

import json
from pathlib import Path

from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.word_vectors import count_words, paragraph_words

SETTINGS = {"sg": 1, "vector_size": 100, "window": 5, "negative": 5, "sample": 1e-3, "min_count": 5, "epochs": 5}
RANKS = slice(100, 300)  # frequent words, without the most frequent, which have no topic

if __name__ == "__main__":
    from gensim.models import Word2Vec

    paragraphs = [words for words in paragraph_words(texts(load_corpus().train)) if words]
    frequent = [word for word in count_words(paragraphs, 5)[0] if word[0].isalpha()][RANKS]
    stored: dict = {"text": "train texts, paragraph_words", "gensim": "4.4.0, workers=1", "settings": SETTINGS}
    for seed in (1, 2):
        vectors = Word2Vec(paragraphs, **SETTINGS, workers=1, seed=seed).wv
        stored[f"seed {seed}"] = {word: [other for other, _ in vectors.most_similar(word)] for word in frequent}
    lines = json.dumps(stored, ensure_ascii=False).replace("], ", "],\n")
    (Path(__file__).parent / "gensim_neighbours.json").write_text(lines + "\n", encoding="utf-8")
