"""Text to integers and back: bytes, characters, words, and byte-level byte-pair encoding (BPE).

Used by every chapter. All four share one interface, and all are lossless: `decode(encode(text)) == text` for every
string. There is no `<unk>`. What a vocabulary lacks is spelled in bytes, and the model pays for the spelling.
The vocabulary of a pre-trained LLM stands behind the same interface.

Not here: WordPiece and the unigram tokenizer, which the chapter *Tokens* writes out.
Merges and encodings of BPE are those of the library `tokenizers`, given the same pieces.
BPE follows Sennrich, Haddow & Birch (2016), on bytes as in GPT-2 (Radford et al. 2019).
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

N_BYTES = 256  # ids 0..255 are the bytes in every tokenizer of this file


@runtime_checkable
class Tokenizer(Protocol):
    """Text to integers in range(vocab_size) and back, without loss."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; b"" for a mark that adds none."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class _Lossless:
    """`decode` for every tokenizer that knows the bytes of each token."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Inverse of `encode`. Bytes that are not UTF-8, which a model may well sample, become U+FFFD."""
        return b"".join([self.token_bytes(token) for token in tokens]).decode("utf-8", errors="replace")


def check_vocab_size(vocab_size: int) -> None:
    """Raise a ValueError where a vocabulary would not even hold the 256 bytes."""
    if vocab_size < N_BYTES:
        raise ValueError(f"vocab_size: {vocab_size}; allowed: {N_BYTES} or more, because the bytes come first")


def utf8(text: str) -> bytes:
    """The bytes of `text`; a lone surrogate, which no valid text holds, is refused with its position."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text: character {error.start} is {text[error.start]!r}, a lone surrogate, which UTF-8 cannot hold; "
            "read the file again with encoding='utf-8'"
        ) from None


class ByteTokenizer(_Lossless):
    """One token per UTF-8 byte.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    """

    vocab_size = N_BYTES

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(utf8(text))

    def token_bytes(self, token: int) -> bytes:
        """The byte itself."""
        return bytes([token])


class CharTokenizer(_Lossless):
    """One token per character seen in `texts`; any other character is spelled in its UTF-8 bytes.

    >>> tokenizer = CharTokenizer(["abba"])
    >>> tokenizer.encode("abé")
    [256, 257, 195, 169]
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.chars = sorted(set().union(*texts))
        self._id = {char: N_BYTES + i for i, char in enumerate(self.chars)}
        self.vocab_size = N_BYTES + len(self.chars)

    def encode(self, text: str) -> list[int]:
        """One id per known character, one id per byte of an unknown one."""
        tokens: list[int] = []
        for char in text:
            known = self._id.get(char)
            if known is None:
                tokens.extend(utf8(char))
            else:
                tokens.append(known)
        return tokens

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a known character, or one byte of an unknown one."""
        return bytes([token]) if token < N_BYTES else self.chars[token - N_BYTES].encode()


# A piece is a word with the space before it, a number, a run of punctuation, line ends, or other white space. Joined,
# the pieces are the text again, so nothing is lost.
PIECE = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\n+|\s+(?!\S)|\s+")


def split_pieces(text: str) -> list[str]:
    """Cut `text` where a word, number, run of punctuation or white space begins; the space joins what follows it.

    >>> split_pieces("The 3 men came.")
    ['The', ' 3', ' men', ' came', '.']
    """
    return PIECE.findall(text)


class WordTokenizer(_Lossless):
    """One token per piece (a word with the space before it) seen at least `min_count` times in `texts`.

    Any other piece is spelled: its UTF-8 bytes, then one token that ends the spelling (id 256).

    >>> tokenizer = WordTokenizer(["to be or not to be"], min_count=1)
    >>> [tokenizer.decode([t]) for t in tokenizer.encode("to be")]
    ['to', ' be']
    >>> tokenizer.encode("no")
    [110, 111, 256]
    """

    END_OF_SPELLING = N_BYTES

    def __init__(self, texts: Iterable[str], min_count: int = 2) -> None:
        if min_count < 1:
            raise ValueError(f"min_count: {min_count}; allowed: 1 or more")
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_pieces(text))
        kept = [piece for piece, count in counts.items() if count >= min_count]
        self.pieces = sorted(kept, key=lambda piece: (-counts[piece], piece))
        self._id = {piece: N_BYTES + 1 + i for i, piece in enumerate(self.pieces)}
        self.vocab_size = N_BYTES + 1 + len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """One id per known piece; bytes and an end mark for each unknown one."""
        tokens: list[int] = []
        for piece in split_pieces(text):
            known = self._id.get(piece)
            if known is None:
                tokens.extend(utf8(piece))
                tokens.append(self.END_OF_SPELLING)
            else:
                tokens.append(known)
        return tokens

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a known piece, one byte of a spelling, or nothing for the end of a spelling."""
        if token < N_BYTES:
            return bytes([token])
        return self.pieces[token - N_BYTES - 1].encode() if token > N_BYTES else b""


class BPETokenizer(_Lossless):
    """Byte-level byte-pair encoding: `merges[i]` is the pair of ids that became id 256 + i.

    Train one with `train_bpe`. Merges never cross the pieces of `split_pieces`.
    """

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        self.merges = [tuple(pair) for pair in merges]
        self.vocab_size = N_BYTES + len(self.merges)
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._bytes = [bytes([i]) for i in range(N_BYTES)]
        for left, right in self.merges:
            self._bytes.append(self._bytes[left] + self._bytes[right])
        self._encode_piece = lru_cache(maxsize=1 << 16)(self._encode_piece_uncached)

    def _encode_piece_uncached(self, piece: str) -> tuple[int, ...]:
        ids = list(utf8(piece))
        while len(ids) > 1:
            ranks = [self._rank.get(pair, len(self.merges)) for pair in pairwise(ids)]
            best = min(ranks)
            if best == len(self.merges):
                break
            ids = merge(ids, self.merges[best], N_BYTES + best)
        return tuple(ids)

    def encode(self, text: str) -> list[int]:
        """The merges of the training, replayed on each piece of `text` in the order in which they were learned."""
        return [token for piece in split_pieces(text) for token in self._encode_piece(piece)]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that the merges of this token join."""
        return self._bytes[token]


def merge(ids: Sequence[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """`ids` with each occurrence of `pair`, from the left, replaced by `new_id`.

    >>> merge([1, 2, 3, 1, 2], (1, 2), 256)
    [256, 3, 256]
    """
    out: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learn byte-level BPE (Sennrich et al. 2016): merge the most frequent pair of neighbours, again and again.

    Counting is done on distinct pieces with their frequency, and only the pieces that hold the merged pair are
    counted again, so a 12 MB corpus takes seconds. A tie goes to the pair with the smaller ids.

    Raises:
        ValueError: `vocab_size` is below 256, or the texts have too few distinct pairs to reach it.
    """
    check_vocab_size(vocab_size)
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(split_pieces(text))
    words = [list(utf8(piece)) for piece in pieces]
    freqs = list(pieces.values())
    counts: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += freqs[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int]] = []
    while N_BYTES + len(merges) < vocab_size:
        while heap and -heap[0][0] != counts[heap[0][1]]:  # an old count: the pair was pushed again when it changed
            heapq.heappop(heap)
        if not heap or heap[0][0] == 0:
            raise ValueError(
                f"vocab_size: {vocab_size}; these texts have pairs for {N_BYTES + len(merges)} tokens at most"
            )
        pair = heapq.heappop(heap)[1]
        new_id = N_BYTES + len(merges)
        changed: Counter[tuple[int, int]] = Counter()
        for i in where.pop(pair):
            for old in pairwise(words[i]):
                changed[old] -= freqs[i]
            words[i] = merge(words[i], pair, new_id)
            for new in pairwise(words[i]):
                changed[new] += freqs[i]
                where[new].add(i)
        for other, change in changed.items():
            if change:
                counts[other] += change
                heapq.heappush(heap, (-counts[other], other))
        merges.append(pair)
    return BPETokenizer(merges)


class HFTokenizer(_Lossless):
    """The vocabulary of a pre-trained LLM behind the book's `Tokenizer` interface. No token is added to a text.

    Text that spells a special token, such as `<|im_end|>`, becomes that token: chat prompts rely on it. A vocabulary
    may lack a rare byte (the packaged one lacks six control characters): `score` refuses a text that holds one.
    """

    def __init__(self, hf: Any, vocab_size: int) -> None:
        self.hf = hf  # the transformers tokenizer, for chat templates
        self.vocab_size = vocab_size  # as wide as the logits, which may be padded beyond the vocabulary
        self._byte_level = "Ġ" in hf.convert_ids_to_tokens(self.encode(" a"))[0]
        # GPT-2 writes bytes as printable characters: those that are printable as themselves, the others from 256 on.
        own = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in own]
        self._byte = {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens around it."""
        utf8(text)  # refuse what no valid text holds with our own words
        return self.hf.encode(text, add_special_tokens=False, verbose=False)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; b"" for an id that pads the vocabulary."""
        piece = self.hf.convert_ids_to_tokens(int(token)) or ""
        if self._byte_level:
            return bytes([self._byte[char] for char in piece])
        spelled = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)  # SentencePiece writes a byte so, and a space as U+2581
        return bytes.fromhex(spelled[1]) if spelled else piece.replace("\u2581", " ").encode()

    def decode(self, tokens: Sequence[int]) -> str:
        """Inverse of `encode`. Bytes that are not UTF-8 become U+FFFD."""
        if self._byte_level:
            return super().decode(tokens)
        return self.hf.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
