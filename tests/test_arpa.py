"""ARPA files: written and read back, opened by KenLM, read as SRILM writes them, and refused when damaged."""

import gzip
import math
import os

import numpy as np
import pytest

from lmsurvey_code.arpa import SpacedTokenizer, load_arpa, save_arpa, token_names
from lmsurvey_code.language_model import score
from lmsurvey_code.ngram import Katz, KneserNey, NgramCounts
from lmsurvey_code.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer, train_bpe

TEXTS = ["The keeper lit the lamp.\n\nThe keeper of the bridge raised the bridge.", "A ship, 2 ships\tand 등대."]
TOKENIZERS = {
    "bytes": ByteTokenizer(),
    "characters": CharTokenizer(TEXTS),
    "words": WordTokenizer(TEXTS, 1),
    "BPE": train_bpe(TEXTS * 2, 270),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("smooth", [Katz, KneserNey, lambda counts: KneserNey(counts, prune=(0, 0, 1))])
def test_a_model_comes_back(name, smooth, tmp_path):
    model = smooth(NgramCounts(TEXTS, TOKENIZERS[name], 3))
    save_arpa(model, tmp_path / "m.arpa")
    again = load_arpa(tmp_path / "m.arpa", model.tokenizer)
    for old, new in zip(model.keys, again.keys, strict=True):
        np.testing.assert_array_equal(old, new)
    text = "The bridge of 2 lamps, 언어!"
    np.testing.assert_allclose(score(model, text).log_probs, score(again, text).log_probs, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["m.arpa"]
    assert "\n-99\t<s>\t" in (tmp_path / "m.arpa").read_text(encoding="utf-8")  # given, never predicted


@pytest.mark.parametrize("name", TOKENIZERS)
def test_names_differ_and_hold_no_white_space(name):
    names = token_names(TOKENIZERS[name])
    assert len(set(names)) == len(names) == TOKENIZERS[name].vocab_size
    assert all(name == "".join(name.split()) != "" for name in names)


def test_kenlm_opens_our_file_and_gives_the_same_numbers(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: it needs a C++ compiler")
    tokenizer = TOKENIZERS["words"]
    model = KneserNey(NgramCounts(TEXTS, tokenizer, 3), modified=True)
    save_arpa(model, tmp_path / "m.arpa")
    theirs, names = kenlm.Model(str(tmp_path / "m.arpa")), token_names(tokenizer)
    for text in (*TEXTS, "The ship of 2 lamps; 언어 and the bridge of the bridge."):
        tokens = tokenizer.encode(text)
        log_probs, orders = model.explain(tokens)
        found = list(theirs.full_scores(" ".join(names[token] for token in tokens), eos=False))
        np.testing.assert_allclose([p * math.log(10) for p, _, _ in found], log_probs, atol=1e-5)
        assert [n for _, n, _ in found] == orders.tolist()


# As SRILM writes it: an empty line first, -99 for <s>, no back-off where it is 0, a small gap in the probabilities.
SRILM = r"""

\data\
ngram 1=4
ngram 2=2

\1-grams:
-0.4771213	</s>
-99	<s>	-0.30103
-0.4771213	a	-0.1
-0.4771213	b

\2-grams:
-0.30103	<s> a
-0.69897	a b

\end\
"""


FORMS = {
    "plain": str.encode,
    "packed": lambda text: gzip.compress(text.encode()),
    "from Windows": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "blank lines and spaces": lambda text: text.replace("\t", "  ").replace("-0.69897", "\n\n-0.69897").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_another_program_opens(form, tmp_path):
    path = tmp_path / ("m.arpa.gz" if form == "packed" else "m.arpa")
    path.write_bytes(FORMS[form](SRILM))
    model = load_arpa(path)
    # log10: a after <s> -0.30103; b after a -0.69897; </s> after b: no entry and no back-off, so -0.4771213
    log_probs, orders = model.explain(model.tokenizer.encode("a b\n"))
    np.testing.assert_allclose(log_probs / math.log(10), [-0.30103, -0.69897, -0.4771213], atol=1e-9)
    assert orders.tolist() == [2, 2, 1]
    # b after <s> backs off: -0.30103 - 0.4771213
    assert model.log_probs(model.tokenizer.encode("b"))[0] / math.log(10) == pytest.approx(-0.7781513)
    with pytest.raises(ValueError, match="does not give this text back"):
        score(model, "a c")


def test_a_damaged_packed_file_is_refused(tmp_path):
    (tmp_path / "m.arpa.gz").write_bytes(gzip.compress(SRILM.encode())[:60] + b"damage")
    with pytest.raises(ValueError, match="cannot be read as an ARPA file"):
        load_arpa(tmp_path / "m.arpa.gz")


def test_a_vocabulary_has_an_end_and_an_unknown_word_and_no_start():
    with pytest.raises(ValueError, match="words: </s> and <unk> missing"):
        SpacedTokenizer(["a"])
    with pytest.raises(ValueError, match="<s> is one of its words"):
        token_names(SpacedTokenizer(["a", "</s>", "<unk>", "<s>"]))


def test_lines_of_words_come_back():
    tokenizer = SpacedTokenizer(["<unk>", "</s>", "a", "b", "1\u00a0000"])
    assert tokenizer.encode("1\u00a0000 a") == [4, 2]  # a no-break space does not part words
    for text in ("", "a", "a b\nb a\n", "\n", "a\n\nb"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a c")) == "a <unk>"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", r"does not begin with \\data\\"),
        ("\\end\\", "", r"no \\end\\"),
        ("ngram 2=2", "ngram 2=3", r"'\\\\end\\\\' among the 2-grams; expected log10 p, 2 words"),
        ("ngram 2=2", "ngram 2=1", r"no \\end\\"),
        ("\\2-grams:", "\\3-grams:", r"'\\\\3-grams:' where"),
        ("-0.69897	a b", "-0.69897	a b c d", "'-0.69897 a b c d' among the 2-grams"),
        ("-0.69897	a b", "x	a b", "could not convert"),
        ("-0.69897	a b", "-0.69897	a z", "no token named 'z'"),
        ("-0.69897	a b", "-0.5	<s> a", "2-grams stands there twice"),
        ("-0.4771213	b", "-0.4771213	a", "1-grams stands there twice"),
        ("-0.69897	a b", "-0.69897	a <s>", "<s> ends one of the 2-grams"),
        ("-0.69897	a b", "0.69897	a b", "2-grams is above 0 or no number"),
        ("-0.69897	a b", "nan	a b", "2-grams is above 0 or no number"),
        ("ngram 1=4\nngram 2=2", "ngram 1", "'ngram 1' where .1-grams|no .end"),
        ("ngram 2=2", "ngram 3=2", "'ngram 3=2' where ngram 2="),
        ("ngram 2=2", "ngram 2=0", "'ngram 2=0' where ngram 2="),
        ("ngram 1=4\nngram 2=2\n\n\\1-grams:", "\\end\\ ", "no .end"),
    ],
)
def test_a_damaged_file_is_refused(old, new, message, tmp_path):
    path = tmp_path / "m.arpa"
    path.write_text(SRILM.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_arpa(path)
    assert str(path) in str(caught.value)


def test_a_long_ngram_needs_its_beginning(tmp_path):
    path = tmp_path / "m.arpa"
    longer = SRILM.replace("ngram 2=2", "ngram 2=2\nngram 3=1").replace("\\end\\", "\\3-grams:\n-1\tb a b\n\n\\end\\")
    path.write_text(longer, encoding="utf-8")
    with pytest.raises(ValueError, match="'b a b' is there, but not its beginning"):
        load_arpa(path)


def test_a_file_of_other_tokens_is_refused(tmp_path):
    (tmp_path / "m.arpa").write_text(SRILM.replace("\tb", "\tbridge"), encoding="utf-8")
    with pytest.raises(ValueError, match="no token named 'bridge'; leave it out"):
        load_arpa(tmp_path / "m.arpa", ByteTokenizer())


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give an ARPA file"):
        load_arpa(tmp_path / "m.arpa")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.arpa"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_arpa(KneserNey(NgramCounts(TEXTS, ByteTokenizer(), 2)), path)
    assert [p.read_text(encoding="utf-8") for p in tmp_path.iterdir()] == ["old"]
