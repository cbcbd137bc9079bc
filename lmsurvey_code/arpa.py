"""N-gram models as files in ARPA format, which KenLM (Heafield 2011) and SRILM (Stolcke 2002) read and write.

The chapter *Smoothing* leans on this file. A line holds log10 p of an n-gram, its words, and log10 of its back-off: the
two tables of a `BackoffLM`. A file names its tokens by strings without white space.

Not here: the binary formats of the two programs, and classes of words.
"""

import gzip
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from lmsurvey_code.files import whole_file
from lmsurvey_code.ngram import BackoffLM, NgramTree
from lmsurvey_code.tokenizers import Tokenizer

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
LOWEST = -99.0  # what the format writes for log10 of 0


class SpacedTokenizer:
    """The words of a file: a text is words with one space between them, and the end of a line is the word `</s>`.

    Any other word becomes `<unk>`, as it does in KenLM. Then `decode` does not give the text back: `log_probs` of the
    tokens says what the model thinks of them, but `score` refuses to call it the cost of the text.

    >>> tokenizer = SpacedTokenizer(["<unk>", "</s>", "to", "be"])
    >>> tokenizer.encode("to be or\\n")
    [2, 3, 0, 1]
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = list(words)
        self.vocab_size = len(self.words)
        self._id = {word: i for i, word in enumerate(self.words)}
        if missing := [word for word in (END, UNKNOWN) if word not in self._id]:
            raise ValueError(f"words: {' and '.join(missing)} missing; a vocabulary of this kind has both")

    def encode(self, text: str) -> list[int]:
        """The words of each line, and `</s>` for each line end."""
        unknown = self._id[UNKNOWN]
        return [self._id.get(word, unknown) for word in _words(text.replace("\n", f" {END} "))]

    def token_bytes(self, token: int) -> bytes:
        """The word after a space, or a line end."""
        word = self.words[token]
        return b"\n" if word == END else f" {word}".encode()

    def decode(self, tokens: Sequence[int]) -> str:
        """Inverse of `encode` for known words."""
        text = b"".join([self.token_bytes(token) for token in tokens]).decode("utf-8")
        return text.replace("\n ", "\n").removeprefix(" ")


def _words(text: str) -> list[str]:
    """What stands between spaces and tabs. Other white space, such as a no-break space, is a part of a word."""
    return [word for word in text.replace("\t", " ").replace("\r", " ").split(" ") if word]


def token_names(tokenizer: Tokenizer) -> list[str]:
    """A different name without white space for each token, shape (vocab_size,).

    It is the token's bytes as GPT-2 writes them, a space as Ġ. Where two tokens have the same bytes, or a token has
    none, the one with the smaller id is `<id>`: a byte that a word model spells with, beside the word of one letter.

    >>> from lmsurvey_code.tokenizers import WordTokenizer
    >>> token_names(WordTokenizer(["a b"], min_count=1))[97::161]
    ['<97>', 'a']
    """
    if isinstance(tokenizer, SpacedTokenizer):
        if START in tokenizer.words:
            raise ValueError(f"tokenizer: {START} is one of its words; in a file it is the mark before each text")
        return tokenizer.words
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    char = [chr(byte if byte in own else next(others)) for byte in range(256)]
    names = ["".join(char[byte] for byte in tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]
    last = {name: token for token, name in enumerate(names) if name not in ("", START, END, UNKNOWN)}
    return [name if last.get(name) == token else f"<{token}>" for token, name in enumerate(names)]


def save_arpa(model: BackoffLM, path: str | Path) -> None:
    """Write `model` as an ARPA file, compressed where the name ends with .gz. An interrupted write leaves no file.

    The book's own models charge no end of text and know every byte: their `</s>` and `<unk>` get probability 0.
    """
    opened = gzip.open if Path(path).suffix == ".gz" else open
    with whole_file(path) as partial, opened(partial, "wt", encoding="utf-8") as file:
        _write(model, file)


def _write(model: BackoffLM, file: TextIO) -> None:
    names = np.array([*token_names(model.tokenizer), START], dtype=object)
    extra = [f"{LOWEST:g}\t{word}\n" for word in (END, UNKNOWN) if word not in set(names)]
    sizes = [len(keys) for keys in model.keys]
    sizes[0] += len(extra)
    file.write("\\data\\\n" + "".join(f"ngram {k}={n}\n" for k, n in enumerate(sizes, 1)))
    words = names
    for k, entries in enumerate(model.entries, 1):
        file.write(f"\n\\{k}-grams:\n" + ("".join(extra) if k == 1 else ""))
        if k > 1:
            words = words[model.prefixes(k)] + " " + names[model.last_tokens(k)]
        log10_p = np.maximum(entries / math.log(10), LOWEST).tolist()
        if k < model.order:
            log10_backoffs = np.maximum(model.backoffs[k - 1] / math.log(10), LOWEST).tolist()
            rows = zip(log10_p, words, log10_backoffs, strict=True)
            file.writelines(f"{p:.7g}\t{gram}\t{backoff:.7g}\n" for p, gram, backoff in rows)
        else:
            file.writelines(f"{p:.7g}\t{gram}\n" for p, gram in zip(log10_p, words, strict=True))
    file.write("\n\\end\\\n")


def load_arpa(path: str | Path, tokenizer: Tokenizer | None = None) -> BackoffLM:
    """Open an ARPA file, plain or .gz.

    Args:
        path: the file.
        tokenizer: the one whose `token_names` the file uses, where `save_arpa` wrote it. Default: a `SpacedTokenizer`
            over the words of the file, to be asked line by line: KenLM starts each line anew.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no complete ARPA file, or its words are not the names of `tokenizer`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist; give an ARPA file, such as lmplz or save_arpa writes")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            return _read(file, tokenizer)
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"path: {path} cannot be read as an ARPA file: {error}") from None


def _read(file: TextIO, tokenizer: Tokenizer | None) -> BackoffLM:
    lines = (line.strip(" \t\n") for line in file if line.strip(" \t\n"))
    if next(lines, "") != "\\data\\":
        raise ValueError(
            r"it does not begin with \data\; a binary file of KenLM must be built again from its ARPA file"
        )
    sizes = []
    for line in lines:
        if not (found := re.fullmatch(r"ngram (\d+) *= *(\d+)", line)):
            break
        if int(found[1]) != len(sizes) + 1 or found[2] == "0":
            raise ValueError(f"{line!r} where ngram {len(sizes) + 1}=1 or more should be")
        sizes.append(int(found[2]))
    else:
        line = ""
    keys, entries, backoffs = [], [], []
    for k, n in enumerate(sizes, 1):
        if line != f"\\{k}-grams:":
            raise ValueError(f"{line[:50]!r} where \\{k}-grams: should be; it may be cut off")
        rows = [_words(line) for line in islice(lines, n)]
        if bad := [row for row in rows if not k < len(row) < k + 3]:
            raise ValueError(f"{' '.join(bad[0])[:50]!r} among the {k}-grams; expected log10 p, {k} words, back-off")
        if k == 1:
            tokenizer = tokenizer or _vocabulary(rows)
            token = {name: i for i, name in enumerate(token_names(tokenizer))} | {START: tokenizer.vocab_size}
            rows = [row for row in rows if row[1] in token or row[1] not in (END, UNKNOWN)]
        try:
            tokens = np.array([[token[word] for word in row[1 : k + 1]] for row in rows])  # (n, k)
        except KeyError as word:
            raise ValueError(f"the tokenizer has no token named {word}; leave it out to use the file's words") from None
        values = np.array([(float(row[0]), float(row[k + 1]) if len(row) > k + 1 else 0.0) for row in rows])
        if not np.all(values[:, 0] <= 0) or np.any(np.isnan(values)):
            raise ValueError(f"a log-probability of the {k}-grams is above 0 or no number")
        values *= math.log(10)
        if k == 1:  # every token has a place, whether the file has it or not
            key = tokens[:, 0]
            table = np.tile([-np.inf, 0.0], (tokenizer.vocab_size + 1, 1))
            table[key] = values
        else:
            if np.any(tokens[:, -1] == tokenizer.vocab_size):
                raise ValueError(f"{START} ends one of the {k}-grams; it is given, never predicted")
            tree, number = NgramTree(tokenizer, keys), tokens[:, 0]
            for j in range(2, k):
                number = tree.find(j, number, tokens[:, j - 1])
            if number.min() < 0:
                raise ValueError(f"{' '.join(rows[int(number.argmin())][1 : k + 1])!r} is there, but not its beginning")
            key = number << tree.bits | tokens[:, -1]
            table = values[np.argsort(key)]
        if len(np.unique(key)) < len(rows):
            raise ValueError(f"one of the {k}-grams stands there twice")
        keys.append(np.arange(len(table)) if k == 1 else np.sort(key))
        entries.append(table[:, 0])
        backoffs.append(table[:, 1])
        line = next(lines, "")
    if not sizes or line != "\\end\\":
        raise ValueError(r"no \end\ after the last n-gram; it may be cut off")
    return BackoffLM(tokenizer, keys, entries, backoffs[:-1])


def _vocabulary(rows: list[list[str]]) -> SpacedTokenizer:
    words = [row[1] for row in rows if row[1] != START]
    return SpacedTokenizer([*words, *(word for word in (END, UNKNOWN) if word not in words)])
