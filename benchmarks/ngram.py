"""N-gram models beside KenLM (Heafield et al. 2013) and NLTK: the same words, the same smoothing.

KenLM's `lmplz` is taken from the environment variable LMPLZ or the PATH, or built once from the source package of
`kenlm`, where cmake and the headers of boost are there. It writes its model to nowhere, so that no file is timed.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import in_turn
from lmsurvey_code.arpa import SpacedTokenizer
from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.ngram import KneserNey, NgramCounts
from lmsurvey_code.tokenizers import CharTokenizer

BUILD = Path.home() / ".cache" / "lmsurvey" / "kenlm"
WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’\-][^\W\d_]+)*|[^\w\s]|_")


def find_lmplz() -> str:
    """Where lmplz is; built where it is nowhere. RuntimeError: it cannot be built, and why."""
    found = os.environ.get("LMPLZ") or shutil.which("lmplz")
    if found:
        return found
    built = BUILD / "build" / "bin" / "lmplz"
    if not built.exists():
        if not shutil.which("cmake"):
            raise RuntimeError("lmplz is not there and cannot be built: cmake is missing")
        with tempfile.TemporaryDirectory() as folder:
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", ":all:", "kenlm==0.3.0"]
            subprocess.run([*pip, "--dest", folder], check=True)
            with tarfile.open(next(Path(folder).glob("kenlm-*.tar.gz"))) as source:
                source.extractall(BUILD.parent, filter="data")
        shutil.rmtree(BUILD, ignore_errors=True)
        (BUILD.parent / "kenlm-0.3.0").rename(BUILD)
        for command in (["cmake", "-S", BUILD, "-B", BUILD / "build", "-DCMAKE_BUILD_TYPE=Release"],
                        ["cmake", "--build", BUILD / "build", "--target", "lmplz", "-j2"]):  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = " ".join(done.stderr.split())[-200:]  # one line, for the table
                raise RuntimeError(f"lmplz cannot be built (are boost's headers there?): {reason}")
    return str(built)


def lines_of(documents: list[str], unit: str) -> list[str]:
    """One paragraph a line, its words or characters with one space between them."""
    found = []
    for part in (part for document in documents for part in document.split("\n\n")):
        tokens = WORD.findall(part) if unit == "words" else part.replace(" ", "▁")
        found.append(" ".join(tokens))
    return [line for line in found if line]


def fit(lines: list[str], order: int) -> KneserNey:
    """Ours, from the same lines: the vocabulary, the counts, the model."""
    tokenizer = SpacedTokenizer([*sorted(set(" ".join(lines).split(" "))), "</s>", "<unk>"])
    return KneserNey(NgramCounts([f"{line}\n" for line in lines], tokenizer, order), modified=True)


def fit_rows(unit: str, order: int) -> list[dict[str, Any]]:
    """Fit modified Kneser-Ney on the whole train split."""
    name = f"fit modified Kneser-Ney, {unit}, order {order}"
    try:
        lmplz = find_lmplz()
    except RuntimeError as reason:
        return [{"name": name, "missing": str(reason)}]
    lines = lines_of(texts(load_corpus().train), unit)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "train.txt")
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [lmplz, "-o", str(order), "-S", "1G", "-T", folder, "--discount_fallback", "--text", text]

        def peer() -> None:
            subprocess.run([*command, "--arpa", "/dev/null"], check=True, capture_output=True)

        ours, theirs = in_turn(lambda: fit(lines, order), peer)
    return [{"name": name, "unit": "s", "ours": ours, "peer": theirs, "peer_name": "KenLM lmplz -S 1G"}]


def query_rows() -> list[dict[str, Any]]:
    """Score the valid split with characters of order 6, model in memory."""
    name, corpus = "score valid, characters, order 6", load_corpus()
    try:
        import kenlm

        lmplz = find_lmplz()
    except (ImportError, RuntimeError) as reason:
        return [{"name": name, "missing": str(reason)}]
    train, valid = texts(corpus.train), texts(corpus.valid)
    model = KneserNey(NgramCounts(train, CharTokenizer(train), 6), modified=True)
    lines = lines_of(valid, "characters")
    with tempfile.TemporaryDirectory() as folder:
        text, arpa = Path(folder, "train.txt"), Path(folder, "model.arpa")
        text.write_text("\n".join(lines_of(train, "characters")) + "\n", encoding="utf-8")
        command = [lmplz, "-o", "6", "-S", "1G", "-T", folder, "--discount_fallback", "--text", text, "--arpa", arpa]
        subprocess.run(command, check=True, capture_output=True)
        peer = kenlm.Model(str(arpa))
    ours, theirs = in_turn(
        lambda: [model.log_probs(model.tokenizer.encode(text)) for text in valid],
        lambda: [peer.score(line) for line in lines],
        n_runs=7,
    )
    return [{"name": name, "unit": "s", "ours": ours, "peer": theirs, "peer_name": "the Python module of KenLM"}]


def nltk_rows() -> list[dict[str, Any]]:
    """Fit a trigram, and score words with Kneser-Ney."""
    names = "fit a trigram, words", "score words, trigram, Kneser-Ney"
    try:
        from nltk import __version__
        from nltk.lm import KneserNeyInterpolated
        from nltk.lm.preprocessing import padded_everygram_pipeline
    except ImportError as reason:
        return [{"name": name, "missing": str(reason)} for name in names]
    corpus = load_corpus()
    lines = lines_of(texts(corpus.train), "words")
    sentences = [line.split(" ") for line in lines]
    asked = lines_of(texts(corpus.valid), "words")
    words = " ".join(asked).split(" ")[:100]
    models: dict[str, Any] = {}

    def peer() -> None:
        models["peer"] = KneserNeyInterpolated(3)
        models["peer"].fit(*padded_everygram_pipeline(3, sentences))

    def ours() -> None:
        models["ours"] = fit(lines, 3)

    seconds = in_turn(ours, peer)
    model = models["ours"]
    start = time.perf_counter()
    n_ours = sum(len(model.log_probs(model.tokenizer.encode(f"{line}\n"))) for line in asked)
    ours_speed = n_ours / (time.perf_counter() - start)
    start = time.perf_counter()
    for i in range(2, len(words)):
        models["peer"].score(words[i], words[i - 2 : i])
    peer_speed = (len(words) - 2) / (time.perf_counter() - start)
    about = {"peer_name": f"NLTK {__version__}, nltk.lm"}
    return [
        {"name": names[0], "unit": "s", "ours": seconds[0], "peer": seconds[1]} | about,
        {"name": names[1], "unit": "words/s", "ours": ours_speed, "peer": peer_speed} | about,
    ]


def rows() -> list[dict[str, Any]]:
    """All rows of this file."""
    return [*fit_rows("words", 5), *fit_rows("characters", 6), *query_rows(), *nltk_rows()]
