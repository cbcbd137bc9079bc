"""Cleaning a pile of text: what is read, filtered, found twice, masked; and the mixtures that are trained on."""

from itertools import combinations

import numpy as np
import pytest

from lmsurvey_code import mixtures, pretraining_data
from lmsurvey_code.corpus import load_corpus
from lmsurvey_code.pretraining_data import (
    Archive,
    QualityClassifier,
    all_jaccard,
    candidates,
    decode,
    deduplicate,
    digest,
    first_of_each_group,
    jaccard,
    licences,
    load_labels,
    mask_personal,
    minhash,
    overlap,
    passages,
    quality_faults,
    shingles,
    visible_lines,
    web_pages,
)

SENTENCE = "The members of the committee have been asked to read the report and to say what they think of it."
PARAGRAPH = " ".join([SENTENCE] * 4)


# ---- reading ----


@pytest.mark.parametrize(
    "content",
    [
        "naïve".encode(),
        b'<meta charset="iso-8859-1">na\xefve',
        b'<meta http-equiv="x" content="text/html; charset=windows-1252">na\xefve',
        b"na\xefve",  # nothing declared
        b"<meta charset=no-such-thing>na\xefve",
        b"<meta charset=hex>na\xefve",  # a codec of Python that gives no text
    ],
)
def test_pages_are_decoded_whatever_they_declare(content):
    assert decode(content).endswith("naïve")


def test_bytes_that_fit_no_encoding_become_marks_and_nothing_fails():
    assert decode(b"<meta charset=utf-8>a\xff\xfeb") == "<meta charset=utf-8>a\ufffd\ufffdb"
    assert decode(b"") == ""


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        ("", []),
        ("<html><head><title>T</title><style>p {}</style></head><body></body></html>", []),
        ("<p>a <b>b</b>\n c</p><p>d", ["a b c", "d"]),
        ("one<br>two<br/>three", ["one", "two", "three"]),
        ("<script>if (a < b) { x }</script>y &amp; z", ["y & z"]),
        ("<svg><style>a</style></svg>b", ["b"]),
        ("<noscript>Please turn it on</noscript><div>text", ["text"]),
        ("<ul><li>1<li>2</ul>", ["1", "2"]),
        ("&amp;lt;b&amp;gt;", ["&lt;b&gt;"]),  # decoded once, not twice
        ("a</script>b</p>c", ["a", "b", "c"]),  # an end without a beginning
    ],
)
def test_visible_lines(page, lines):
    assert visible_lines(page) == lines


def test_passages_lose_nothing():
    lines = ["a b c", "d", "e f", "g"]
    assert passages(lines, 3) == ["a b c", "d\ne f", "g"]
    assert "\n".join(passages(lines, 2)).split("\n") == lines
    assert passages([]) == []
    with pytest.raises(ValueError, match="n_words: 0; allowed: 1 or more"):
        passages(lines, 0)


def test_an_archive_with_other_content_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSURVEY_CACHE", str(tmp_path))
    (tmp_path / "x.tar.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"x\.tar\.gz: SHA-256 .* expected abc; delete the file"):
        Archive("x==1", "x.tar.gz", 1.0, "abc").content()


def test_an_archive_that_pip_cannot_get_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSURVEY_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"could not download nothing==1 .*put nothing-1\.tar\.gz into"):
        Archive("nothing==1", "nothing-1.tar.gz", 1.0, "abc").content()
    assert not list(tmp_path.iterdir())  # and leaves nothing behind


# ---- quality ----


def test_prose_breaks_no_rule():
    assert quality_faults(PARAGRAPH) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "short"),
        (SENTENCE, "short"),
        ("a b c d " * 20 + ".", "word length"),
        (PARAGRAPH + " #a" * 20 + ".", "symbols"),
        ("\n".join("• " + SENTENCE for _ in range(4)), "bullets"),
        ("\n".join(SENTENCE + ".." for _ in range(4)), "ellipses"),
        (PARAGRAPH + " 1234" * 40 + ".", "letters"),
        ("Contact details, opening hours, street address. " * 12, "stop words"),
        ("\n".join(["The menu of all that we have for you"] * 10), "ends"),
        (PARAGRAPH + " Please enable JavaScript.", "marks"),
        (PARAGRAPH + " {", "marks"),
        (PARAGRAPH + " Lorem ipsum.", "marks"),
    ],
)
def test_each_rule_can_break(text, fault):
    assert fault in quality_faults(text)


def test_the_classifier_learns_what_is_like_the_reference():
    good = [f"{SENTENCE} Number {i}." for i in range(20)]
    bad = [f"Home Menu Login Share {i}" for i in range(5)]  # fewer: both kinds count the same
    model = QualityClassifier(good, bad)
    scores = model.scores([SENTENCE, "Menu Login", ""])
    assert scores[0] > 0.9
    assert scores[1] < 0.1
    assert 0 < scores[2] < 1  # an empty text has a score too
    assert len(model.scores([])) == 0


@pytest.mark.parametrize(("good", "unfiltered", "name"), [([], ["a"], "good"), (["a"], [], "unfiltered")])
def test_the_classifier_needs_both_kinds(good, unfiltered, name):
    with pytest.raises(ValueError, match=f"{name}: no passage"):
        QualityClassifier(good, unfiltered)


# ---- duplicates ----


def random_sets(n, seed=0):
    """Sets of hashes whose similarities lie everywhere between 0 and 1."""
    rng = np.random.default_rng(seed)
    base = np.unique(rng.integers(0, 1 << 32, 600, dtype=np.uint64))
    out = []
    for share in np.linspace(0, 1, n):
        own = np.unique(rng.integers(0, 1 << 32, 400, dtype=np.uint64))
        out.append(np.unique(np.concatenate([base[: int(share * len(base))], own[: int((1 - share) * 400) + 1]])))
    return out


def test_shingles_are_the_different_runs_of_words():
    assert len(shingles("a b c d e f")) == 2
    assert np.array_equal(shingles("A, b! C d-e f"), shingles("a b c d e f"))
    assert len(shingles("a b")) == 1  # shorter than a run
    assert len(shingles("a b a b a b a", 2)) == 2


@pytest.mark.parametrize(("text", "n"), [("", 5), ("...", 5), ("a b", 0)])
def test_shingles_of_nothing_are_refused(text, n):
    with pytest.raises(ValueError, match="allowed: 1 or more of both"):
        shingles(text, n)


def test_all_jaccard_is_jaccard_of_each_pair():
    sets = random_sets(9)
    found = all_jaccard(sets)
    assert np.allclose(np.diag(found), 1)
    for i, j in combinations(range(9), 2):
        a, b = set(sets[i].tolist()), set(sets[j].tolist())
        assert found[i, j] == found[j, i] == jaccard(sets[i], sets[j]) == len(a & b) / len(a | b)


def test_minhash_is_that_of_datasketch():
    datasketch = pytest.importorskip("datasketch")
    functions = np.array(pretraining_data.hash_functions(128, 0))
    for shingle_set in random_sets(5):
        theirs = datasketch.MinHash(128, hashfunc=lambda x: x, permutations=functions, scheme="legacy")
        theirs.update_batch([int(value) for value in shingle_set])
        assert np.array_equal(theirs.hashvalues, minhash(shingle_set))


def test_minhash_estimates_jaccard_without_bias():
    sets = random_sets(40)
    exact = all_jaccard(sets)
    signatures = np.stack([minhash(s, n_hashes=256, seed=1) for s in sets])
    errors = []
    for i, j in combinations(range(40), 2):
        p = exact[i, j]
        if 0.05 < p < 0.95:
            estimate = (signatures[i] == signatures[j]).mean()
            errors.append((estimate - p) / np.sqrt(p * (1 - p) / 256))  # in standard errors of 256 throws of a coin
    assert len(errors) > 100
    assert abs(np.mean(errors)) < 0.5  # pairs share texts, so their errors are not independent
    assert 0.7 < np.std(errors) < 1.3
    assert np.abs(errors).max() < 5


def test_minhash_of_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="shingle_set: empty"):
        minhash(np.zeros(0, dtype=np.uint64))


def test_bands_find_likely_pairs():
    signatures = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [8, 8, 3, 4], [5, 6, 7, 0]])
    assert candidates(signatures, 2) == {(0, 1), (0, 2)}
    assert candidates(signatures, 1) == set()
    for n_bands in (0, 3):
        with pytest.raises(ValueError, match=f"n_bands: {n_bands}; allowed: a divisor"):
            candidates(signatures, n_bands)


def test_the_chance_of_a_candidate_is_the_curve_of_the_formula():
    rng = np.random.default_rng(0)
    for similarity in (0.5, 0.7, 0.9):
        same = rng.random((4000, 128)) < similarity  # of 4,000 pairs, which places of the signatures agree
        hit = same.reshape(4000, 16, 8).all(-1).any(-1).mean()
        assert abs(hit - (1 - (1 - similarity**8) ** 16)) < 0.03


def test_groups_are_linked_over_others_and_the_first_stays():
    assert first_of_each_group(6, [(4, 2), (2, 5)]) == [0, 1, 2, 3]
    assert first_of_each_group(3, []) == [0, 1, 2]
    assert first_of_each_group(3, [(1, 2), (0, 2)]) == [0]


def test_deduplicate_keeps_the_first_of_near_copies_and_what_has_no_word():
    words = [f"w{i}" for i in range(200)]
    text, near, far = " ".join(words), " ".join([*words[:199], "x"]), " ".join(reversed(words))
    assert deduplicate([text, "", near, far, text, "!?"]) == [0, 1, 3, 5]
    assert deduplicate([]) == []
    assert deduplicate([""]) == [0]


def test_a_candidate_below_the_threshold_is_no_copy():
    words = [f"w{i}" for i in range(200)]
    pair = [" ".join(words), " ".join([*words[:177], *(f"x{i}" for i in range(23))])]
    sets = [shingles(text) for text in pair]
    assert 0.78 < jaccard(*sets) < 0.8
    assert candidates(np.stack([minhash(s) for s in sets])) == {(0, 1)}
    assert deduplicate(pair) == [0, 1]
    assert deduplicate(pair, threshold=0.78) == [0]


# ---- personal data, overlap ----


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ann.lee+news@mail.example.org.", "<email>."),
        ("from 192.0.2.7, then", "from <IP address>, then"),
        ("call +1 202 555 0143 now", "call <phone> now"),
        ("call (202) 555-0143 now", "call <phone> now"),
        ("call 202-555-0143 now", "call <phone> now"),
        ("Tel. 030/1234567", "Tel. <phone>"),
        ("Tel. 030 123 4567", "Tel. <phone>"),
    ],
)
def test_personal_data_is_masked(text, masked):
    assert mask_personal(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "in 2019 and 2020",
        "version 1.2.3",
        "on 2019-06-05",
        "on 05.06.2019, 14:00",
        "(03.04.2013)",
        "#00000000",
        "300.1.2.3.4",
        "a @ b",
        "$1,234,567",
        "pp. 12-34",
    ],
)
def test_what_is_no_personal_data_stays(text):
    assert mask_personal(text) == (text, {"email": 0, "IP address": 0, "phone": 0})


def test_overlap_finds_planted_words_and_no_others():
    text = "one two three four five six"
    assert overlap(text, ["zero ONE two, three nine"], n=3) == (0.5, ["one two three"])
    assert overlap(text, [text], n=3)[0] == 1
    assert overlap(text, [], n=3) == (0, [])
    assert overlap("", [text]) == (0, [])
    with pytest.raises(ValueError, match="n: 1; allowed: 2 or more"):
        overlap(text, [text], n=1)


# ---- the pile ----


def test_the_labels_are_those_of_the_pages():
    labels = load_labels()
    assert len(labels) == 206
    assert {label for _, label in labels.values()} == {0, 1}
    for (page, number), (name, _) in labels.items():
        assert mixtures.is_held_out(page)
        assert digest(mixtures.page_passages(page)[number]) == name


def test_no_held_out_text_is_in_the_pile():
    held_out = {line for text in mixtures.held_out_texts().values() for line in text.split("\n") if len(line) > 100}
    trained = {line for text in mixtures.pile()["text"] for line in text.split("\n")}
    assert len(held_out) > 250
    assert not held_out & trained


def test_each_step_leaves_less():
    sizes = [sum(map(len, mixtures.pile()[step])) for step in ("raw", "text", "English", "rules", "deduplicated")]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) > 400_000
    assert len(mixtures.pile()["masked"]) == len(mixtures.pile()["deduplicated"])
    assert (len(web_pages()), len(licences())) == (177, 2289)


def test_orders_have_the_same_windows():
    runs = {
        order: mixtures.window_starts([5000, 9000], [0.5, 0.5], order, 1) for order in ("mixed", "forward", "backward")
    }
    assert len({tuple(np.sort(run.ravel())) for run in runs.values()}) == 1
    assert np.array_equal(runs["forward"].ravel(), runs["backward"].ravel()[::-1])
    assert np.all(np.diff(runs["forward"].ravel()) >= 0)
    last = mixtures.TRAINING.block_size + 1
    assert runs["mixed"].max() + last <= 14_000
    assert not np.any((runs["mixed"] > 5000 - last) & (runs["mixed"] < 5000))  # no window is in two sources


@pytest.mark.parametrize(
    ("shares", "order", "message"),
    [([0.5, 0.4], "mixed", "shares"), ([1.0], "mixed", "shares"), ([0.5, 0.5], "sorted", "order: 'sorted'")],
)
def test_wrong_mixtures_are_refused(shares, order, message):
    with pytest.raises(ValueError, match=message):
        mixtures.window_starts([5000, 9000], shares, order, 0)


def test_the_corpus_is_not_in_the_pile():
    assert overlap(load_corpus().test[0].text, mixtures.pile()["masked"], n=13)[0] == 0


def test_the_shares_of_sources_are_whole_and_cited():
    data = pretraining_data.LABELS.parent
    rows = [row.split("\t") for row in (data / "source_shares.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    bibliography = (data.parent.parent / "book" / "references.bib").read_text(encoding="utf-8")
    for model in {row[0] for row in rows}:
        assert 99 <= sum(float(row[3]) for row in rows if row[0] == model) <= 101  # the papers round
    for row in rows:
        assert f"url = {{{row[4]}}}" in bibliography


def test_the_languages_are_those_of_the_held_out_pages():
    text = (pretraining_data.LABELS.parent / "pages_language.tsv").read_text(encoding="utf-8")
    rows = [row.split("\t") for row in text.splitlines()[1:]]
    assert all(mixtures.is_held_out(page) for page, _, _ in rows)
    names = {page.rpartition("/")[2] for page in web_pages() if mixtures.is_held_out(page)}
    assert {page.rpartition("/")[2] for page, _, _ in rows} == names
    wrong = [
        page for page, _, code in rows if mixtures.language("\n".join(visible_lines(decode(web_pages()[page])))) != code
    ]
    assert len(wrong) == 1
