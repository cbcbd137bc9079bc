"""What KenLM's `lmplz` estimates from a part of the corpus: `python tests/peers/lmplz.py PATH/TO/lmplz` stores it.

The text is made again from the corpus by `lines_of`, so that the test and the stored values are about the same words.
Stored: the number of n-grams per order, and log10 p and n-gram length of each token of some lines of another year, as
the module `kenlm` reads them from lmplz's file.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from lmsurvey_code.corpus import Document, load_corpus

STORED = Path(__file__).with_suffix(".json")
ORDER = 5
PRUNE = {"all": (), "pruned": (0, 0, 1, 1, 2)}


def lines_of(documents: tuple[Document, ...]) -> list[str]:
    """One paragraph a line: words and signs with one space between them."""
    lines = (" ".join(re.findall(r"\w+|[^\w\s]", part)) for document in documents for part in document.paragraphs)
    return [line for line in lines if line]


def train_lines() -> list[str]:
    """What the model reads: the last twelve texts of train."""
    return lines_of(load_corpus().train[-12:])


def asked_lines() -> list[str]:
    """What it is asked: the first lines of the last text of valid, and a line of unknown words."""
    return [*lines_of(load_corpus().valid[-1:])[:40], "등대 lighthousekeepers !"]


def main(lmplz: str) -> None:
    """Run lmplz and store what its models say."""
    import kenlm

    stored, folder = {}, STORED.parent
    for name, prune in PRUNE.items():
        text, arpa = folder / "lines.tmp", folder / "model.tmp"
        text.write_text("\n".join(train_lines()) + "\n", encoding="utf-8")
        command = [lmplz, "-o", str(ORDER), "-S", "1G", "--text", text, "--arpa", arpa]
        subprocess.run([*command, *(["--prune", *map(str, prune)] if prune else [])], check=True)
        sizes = re.findall(r"ngram \d=(\d+)", arpa.read_text(encoding="utf-8")[:200])
        model = kenlm.Model(str(arpa))
        scores = [[(round(p, 6), n) for p, n, _ in model.full_scores(line)] for line in asked_lines()]
        stored[name] = {"sizes": list(map(int, sizes)), "scores": scores}
        text.unlink()
        arpa.unlink()
    STORED.write_text(json.dumps(stored) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
