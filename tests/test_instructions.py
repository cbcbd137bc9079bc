"""The instruction set: its form, its counts, no leak from a held-out cluster, answers found again by other means."""

import calendar
import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from lmsurvey_code.adaptation import UNSEEN
from lmsurvey_code.corpus import load_corpus, texts
from tools.make_instructions import COLUMNS, rule_rows

DATA = Path(__file__).parents[1] / "lmsurvey_code" / "data"
HELD_OUT = ("answer", "classify", "compare", "extract")
LABELS = {
    "classify/topic": {"food", "music", "sports", "weather"},
    "classify/sentiment": {"positive", "negative"},
    "classify/tense": {"past", "present", "future"},
    "classify/thing": {"animal", "plant", "tool", "vehicle"},
    "answer/yesno": {"yes", "no"},
}
MONTHS = list(calendar.month_name)[1:]


def read(name: str) -> list[dict[str, str]]:
    header, *lines = (DATA / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    names = header.split("\t")
    rows = [line.split("\t") for line in lines]
    assert all(len(row) == len(names) for row in rows), "a row with too few or too many cells"
    return [{n: c.replace("\\t", "\t").replace("\\n", "\n") for n, c in zip(names, row, strict=True)} for row in rows]


ROWS = read("instructions.tsv")
SEEDS = read("instructions_seed.tsv")
BY_KIND: dict[str, list[dict[str, str]]] = defaultdict(list)
for row in ROWS:
    BY_KIND[row["kind"]].append(row)


def cluster(row: dict[str, str]) -> str:
    return row["kind"].split("/")[0]


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+.]+", text.lower()))


def wrong(kind: str, right) -> list[tuple[str, str]]:
    """The input and output of each row of a kind for which `right` finds another answer."""
    return [(r["input"], r["output"]) for r in BY_KIND[kind] if not right(r["input"], r["output"])]


SMALL = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen"""
VALUE = {word: n for n, word in enumerate(re.findall(r"\w+", SMALL), 1)}
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUE |= {word: 10 * n for n, word in enumerate(re.findall(r"\w+", TENS), 2)}


def number_in_words(text: str) -> int:
    total = 0
    for word in re.split("[ -]", text):
        total = total * 100 if word == "hundred" else total + VALUE[word]
    return total


# ---- form ----


def test_columns_and_cells():
    assert tuple(ROWS[0]) == COLUMNS
    assert tuple(SEEDS[0]) == ("instruction", "input", "output")
    for row in ROWS:
        assert re.fullmatch(r"[a-z]+/[a-z]+", row["kind"]), row
        assert row["source"] in ("written", "rule", "corpus"), row
        assert row["check"] in ("exact", "number", "open"), row
    for row in ROWS + SEEDS:
        assert all(cell == cell.strip() and "  " not in cell and "\\" not in cell for cell in row.values()), row
        assert "".join(row.values()).isascii(), row
        assert row["instruction"], row
        assert row["output"], row
        assert len(row["output"].split()) <= 60, row
    assert all(row["input"] for row in ROWS)


def test_sorted_by_kind():
    kinds = [row["kind"] for row in ROWS]
    assert kinds == sorted(kinds)


def test_counts():
    clusters = Counter(map(cluster, ROWS))
    assert len(ROWS) >= 1600
    assert len(clusters) == 13
    assert len(BY_KIND) == 52
    assert set(Counter(kind.split("/")[0] for kind in BY_KIND).values()) == {4}
    assert all(30 <= len(rows) <= 40 for rows in BY_KIND.values()), {k: len(r) for k, r in BY_KIND.items()}
    assert sum(row["source"] == "written" for row in ROWS) >= 700
    assert sum(row["check"] != "open" for row in ROWS) >= 0.6 * len(ROWS)
    assert len(SEEDS) == 60


def test_one_check_per_kind_and_none_open_where_held_out():
    assert all(len({row["check"] for row in rows}) == 1 for rows in BY_KIND.values())
    for name in HELD_OUT:
        rows = [row for row in ROWS if cluster(row) == name]
        assert len(rows) >= 140
        assert all(row["check"] != "open" and len(row["output"].split()) <= 5 for row in rows)


def test_each_kind_has_several_wordings_well_spread():
    owner: dict[str, str] = {}
    for kind, rows in BY_KIND.items():
        counts = Counter(row["instruction"] for row in rows)
        assert 3 <= len(counts) <= 5, kind
        assert min(counts.values()) >= 5, (kind, counts)
        for wording in counts:
            assert owner.setdefault(wording, kind) == kind, f"{wording!r} belongs to two kinds"


def test_wording_does_not_give_the_label_away():
    # With k labels, the most frequent one must not own a wording's rows.
    for kind, labels in LABELS.items():
        for wording in {row["instruction"] for row in BY_KIND[kind]}:
            counts = Counter(row["output"] for row in BY_KIND[kind] if row["instruction"] == wording)
            assert max(counts.values()) < 0.75 * counts.total(), (kind, wording, counts)
        counts = Counter(row["output"] for row in BY_KIND[kind])
        assert set(counts) == labels
        assert max(counts.values()) - min(counts.values()) <= 4, (kind, counts)


def test_a_copy_of_the_input_is_never_right():
    # Letters' case is what two kinds are about: whoever scores them must compare it (lower case hides the mistake).
    for row in ROWS:
        if row["kind"] in ("correct/capitals", "format/uppercase"):
            assert row["output"].lower() == row["input"].lower()
            assert row["output"] != row["input"]
        else:
            assert row["output"].lower() != row["input"].lower(), row


# ---- repetition and leaks ----


def test_no_question_twice_in_a_kind():
    for kind, rows in BY_KIND.items():
        counts = Counter(plain(row["input"]) for row in rows)
        assert max(counts.values()) == 1, (kind, counts.most_common(1))


def test_no_near_duplicates():
    # Written texts of one kind that share four fifths of their words would be one text with a word changed.
    for kind, rows in BY_KIND.items():
        if rows[0]["source"] == "rule":
            continue
        bags = [set(plain(row["input"]).split()) for row in rows]
        for a, b in itertools.combinations([bag for bag in bags if len(bag) > 4], 2):
            assert len(a & b) < 0.8 * len(a | b), (kind, a, b)


def test_nothing_of_a_held_out_cluster_lies_elsewhere():
    for name in HELD_OUT:
        own = {plain(row["input"]) for row in ROWS if cluster(row) == name}
        wordings = {plain(row["instruction"]) for row in ROWS if cluster(row) == name}
        others = [row for row in ROWS if cluster(row) != name] + SEEDS
        assert not own & {plain(row["input"]) for row in others}
        assert not own & {plain(row["output"]) for row in others if len(row["output"].split()) > 2}
        assert not wordings & {plain(row["instruction"]) for row in others}


def test_a_word_to_classify_is_in_no_input_of_one_word():
    others = {row["input"] for row in ROWS if cluster(row) != "classify"}
    assert not {row["input"] for row in BY_KIND["classify/thing"]} & others


def test_test_items_of_other_chapters_are_not_used():
    """Nor words of "kinds" in what a training sees; pairs of "test", which none sees, ask for the kind of some."""
    items, kinds = set(), set()
    for file in sorted((DATA / "tasks").glob("*.tsv")):
        for line in file.read_text(encoding="utf-8").splitlines()[1:]:
            *_, given, answer = line.split("\t")  # the facts have their relation first
            (kinds if file.stem == "kinds" else items).add((plain(given), plain(answer)))
    assert len(items) > 1000
    assert len(kinds) == 280
    assert not items & {(plain(row["input"]), plain(row["output"])) for row in ROWS + SEEDS}
    seen = [row for row in ROWS if row["kind"].partition("/")[0] not in UNSEEN["test"]]
    assert not kinds & {(plain(row["input"]), plain(row["output"])) for row in seen + SEEDS}
    sentences = {given for given, _ in items if " " in given}
    assert not sentences & {plain(row["input"]) for row in ROWS + SEEDS}


def test_seeds_are_all_different():
    assert len({(row["instruction"], row["input"]) for row in SEEDS}) == 60
    assert len({row["instruction"] for row in SEEDS}) >= 58


# ---- answers found again by other means ----


def test_rows_of_a_rule_are_those_of_the_script():
    stored = sorted(tuple(row.values()) for row in ROWS if row["source"] == "rule")
    assert stored == sorted(rule_rows())


def test_arithmetic():
    words = {"plus": "+", "minus": "-", "times": "*", "x": "*"}
    for kind in ("arithmetic/sum", "arithmetic/difference", "arithmetic/product"):
        for row in BY_KIND[kind]:
            a, sign, b = row["input"].split()
            sign = words.get(sign, sign)
            assert sign == {"sum": "+", "difference": "-", "product": "*"}[kind.split("/")[1]]
            assert int(row["output"]) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert int(row["output"]) > 0


def test_stories_come_out_as_one_operation_on_their_numbers():
    def right(text: str, answer: str) -> bool:
        known = VALUE | {"half": 2, "twice": 2}
        found = [
            known.get(word.lower()) or int(word)
            for word in re.findall(r"\d+|\w+", text)
            if word.isdigit() or word.lower() in known
        ]
        return any(int(answer) in (a + b, a - b, a * b, a / b) for a, b in itertools.permutations(found, 2))

    assert not wrong("arithmetic/story", right)


def test_counts_of_things():
    assert not wrong("count/items", lambda text, n: text.count(",") + 1 == int(n))
    assert not wrong("count/letters", lambda text, n: len(re.findall("[a-z]", text)) == int(n))
    assert not wrong("count/vowels", lambda text, n: len(re.findall("[aeiou]", text)) == int(n))
    assert not wrong("count/words", lambda text, n: len(re.findall(r"[A-Za-z']+", text)) == int(n))


def test_sentences_of_the_corpus_are_in_it():
    addresses = "\n".join(texts(load_corpus().train))
    rows = [row for row in ROWS if row["source"] == "corpus"]
    assert len(rows) >= 30
    assert [row["input"] for row in rows if row["input"] not in addresses] == []


def test_conversions():
    per = {"meters": 1000, "kilometers": 10**6, "centimeters": 10, "millimeters": 1}
    per |= {"kilograms": 1000, "grams": 1, "liters": 1000, "milliliters": 1, "feet": 12, "inches": 1, "yards": 36}
    per |= {"pounds": 16, "ounces": 1, "gallons": 4, "quarts": 1, "dollars": 100, "cents": 1, "weeks": 7, "days": 1}
    per |= {"hours": 60, "minutes": 1}

    def unit(text: str, answer: str) -> bool:
        amount, large, _, small = text.split()
        return int(amount) * per[large] == int(answer) * per[small]

    def clock(text: str, answer: str) -> bool:
        hour, minute, half = re.fullmatch(r"(1?\d):(\d\d) ([ap]\.m\.)", answer).groups()
        assert 1 <= int(hour) <= 12
        return f"{int(hour) % 12 + 12 * (half == 'p.m.'):02}:{minute}" == text

    def roman(text: str, answer: str) -> bool:
        values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in text]
        return int(answer) == sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))

    def numeral(text: str, answer: str) -> bool:
        return number_in_words(text) == int(answer)

    for name, right in {"units": unit, "clock": clock, "roman": roman, "numerals": numeral}.items():
        assert not wrong(f"convert/{name}", right)


def test_comparisons():
    def when(text: str) -> tuple[int, int]:
        *month, year = text.split()
        return int(year), MONTHS.index(month[0]) if month else 0

    def number(text: str) -> float:
        return float(text)

    assert not wrong("compare/larger", lambda text, answer: max(text.split(" or "), key=number) == answer)
    assert not wrong("compare/earlier", lambda text, answer: min(text.split(" or "), key=when) == answer)
    assert not wrong("compare/alphabet", lambda text, answer: sorted(text.split(" or "))[0] == answer)
    assert not wrong("compare/heavier", lambda text, answer: answer in text.split(" or "))
    # The right one stands in front about as often as not: a model that always takes the first one earns nothing.
    for name in ("larger", "earlier", "alphabet", "heavier"):
        rows = BY_KIND[f"compare/{name}"]
        assert abs(sum(row["input"].startswith(row["output"] + " or ") for row in rows) - len(rows) / 2) <= 3


def test_formats():
    def bullets(text: str, answer: str) -> bool:
        return [line.removeprefix("- ") for line in answer.split("\n")] == re.split(r", and |, | and ", text)

    def as_json(text: str, answer: str) -> bool:
        fields = dict(field.split(": ") for field in text.split("; "))
        back = json.loads(answer)
        return {k: str(v) for k, v in back.items()} == fields and json.dumps(back) == answer

    assert not wrong("format/bullets", bullets)
    assert not wrong("format/json", as_json)
    assert not wrong("format/uppercase", lambda text, answer: answer.lower() == text and answer.isupper())
    assert not wrong("format/thousands", lambda text, answer: answer.replace(",", "") == text)
    assert not wrong("format/thousands", lambda _, answer: re.fullmatch(r"\d{1,3}(,\d{3})+", answer))


def test_extracted_answers_occur_once():
    for name in ("color", "date", "name", "number"):
        assert not wrong(f"extract/{name}", lambda text, answer: len(re.findall(rf"\b{answer}\b", text)) == 1)
    date = re.compile(rf"({'|'.join(MONTHS)}) ([1-9]|[12]\d|3[01]), \d{{4}}")
    assert not wrong("extract/date", lambda text, answer: date.fullmatch(answer) and len(date.findall(text)) == 1)
    assert not wrong("extract/number", lambda text, answer: re.findall(r"\d[\d,]*\d|\d", text) == [answer])
    colors = {row["output"] for row in BY_KIND["extract/color"]}
    assert not wrong(
        "extract/color", lambda text, answer: colors & set(plain(text).replace(".", "").split()) == {answer}
    )
    names = {row["output"] for row in BY_KIND["extract/name"]}
    assert not wrong("extract/name", lambda text, answer: names & set(re.findall(r"\w+", text)) == {answer})
    assert len(names) == len(BY_KIND["extract/name"])


def test_choices_and_passages_hold_their_answer():
    def choice(text: str, answer: str) -> bool:
        _, _, choices = text.partition("? Choices: ")
        return choices.split(", ").count(answer) == 1 and choices.count(",") == 2

    assert not wrong("answer/choice", choice)
    places = Counter(
        row["input"].split("Choices: ")[1].split(", ").index(row["output"]) for row in BY_KIND["answer/choice"]
    )
    assert max(places.values()) - min(places.values()) <= 2, places
    assert not wrong("answer/passage", lambda text, answer: re.search(rf"\b{answer}\b", text.split(" Question: ")[0]))
    assert not wrong("answer/passage", lambda text, answer: " " not in answer and text.count(" Question: ") == 1)


def test_plurals_and_comparatives_follow_the_rule_or_are_known_exceptions():
    irregular = {"child", "mouse", "tooth", "woman", "goose", "foot", "ox"}
    to_ves = {"leaf", "knife", "wolf", "loaf", "shelf", "half", "calf"}

    def plural(word: str) -> str:
        if word in to_ves:
            return re.sub("fe?$", "ves", word)
        if re.search("(s|x|z|ch|sh)$", word) or word in {"potato", "tomato"}:
            return word + "es"
        return re.sub("y$", "ies", word) if re.search("[^aeiou]y$", word) else word + "s"

    def comparative(word: str) -> str:
        if re.search("[^aeiou]y$", word):
            return word[:-1] + "ier"
        if re.fullmatch("[^aeiou]+[aeiou][bdgmnt]", word):  # thin, red, sad: one short vowel, one consonant
            return word + word[-1] + "er"
        return word.removesuffix("e") + "er"

    assert not wrong("words/plural", lambda word, answer: word in irregular or plural(word) == answer)
    assert not wrong("words/comparative", lambda word, answer: word in {"good", "bad"} or comparative(word) == answer)
    assert not wrong("words/agent", lambda word, answer: re.search("(er|or)$", answer) and answer[:3] == word[:3])


def test_nouns_and_explanations_name_what_they_are_about():
    endings = "(ness|th|ty|ce|cy|dom|ry|er|e|st)$"
    assert not wrong(
        "words/noun", lambda word, answer: re.search(endings, answer) and answer[:2] in (word[:2], "le", "be")
    )

    def names_both(text: str, answer: str) -> bool:
        return all(part.split()[-1][:3] in answer.lower() for part in text.split(" and "))

    assert not wrong("explain/difference", names_both)
    assert not wrong("explain/word", lambda word, answer: word.split(" (")[0].removeprefix("to ") in answer.lower())


def test_the_future_is_told_with_will_or_going_to():
    future = re.compile(r"\b(will|is going to)\b")
    present = re.compile(r"\b(is|are|am|likes|sells|works|knows|live|speaks)\b")

    def right(text: str, answer: str) -> bool:
        return answer == ("future" if future.search(text) else "present" if present.search(text) else "past")

    assert not wrong("classify/tense", right)


def test_corrections_change_only_what_they_should():
    assert not wrong("correct/capitals", lambda text, answer: text == answer.lower() and answer[0].isupper())
    assert not wrong("correct/punctuation", lambda text, answer: answer[:-1] == text and answer[-1] in ".?")
    openers = "where how why can who when is what did which are has whose do could will"
    first = set(openers.split(" "))
    assert not wrong(
        "correct/punctuation", lambda text, answer: (text.split()[0].lower() in first) == (answer[-1] == "?")
    )
    for kind in ("correct/spelling", "correct/grammar"):

        def one_word(text: str, answer: str) -> bool:
            a, b = text.split(), answer.split()
            return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1

        assert not wrong(kind, one_word)


def test_rewritten_sentences_keep_their_words():
    def passive(text: str, answer: str) -> bool:
        subject, _, doer = answer.removesuffix(".").partition(" by ")
        was = re.search(r" (was|were) \w+$", subject)
        return (
            bool(was)
            and text.lower().startswith(doer.lower())
            and text[:-1].lower().endswith(subject[: was.start()].lower())
        )

    def question(text: str, answer: str) -> bool:
        a, b = (sorted(re.findall(r"\w+", t.lower())) for t in (text, answer))
        if b.count("do") + b.count("does") + b.count("did") > a.count("do"):
            return answer.endswith("?") and len(b) == len(a) + 1
        return answer.endswith("?") and a == b

    def negative(text: str, answer: str) -> bool:
        if re.search(r"\b(do|does|did) not\b", answer):
            return len(answer.split()) == len(text.split()) + 2
        return answer.replace(" not ", " ", 1) == text

    assert not wrong("rewrite/passive", passive)
    assert not wrong("rewrite/question", question)
    assert not wrong("rewrite/negative", negative)
    assert not wrong("rewrite/polite", lambda _, answer: len(re.findall(r"[.?!](?: |$)", answer)) == 1)


def test_open_answers_keep_to_the_length_that_is_asked():
    def sentences(answer: str) -> int:
        return len(re.findall(r"[.?!]\"?(?= [A-Z]|$)", re.sub(r"\b(Mr|Mrs|Ms|Dr)\.", r"\1", answer)))

    limits = {"write/sentence": 1, "explain/word": 1, "explain/why": 2, "explain/how": 3, "explain/difference": 2}
    limits |= {"write/description": 2, "write/email": 3, "rewrite/polite": 1}
    for kind, limit in limits.items():
        assert not wrong(kind, lambda _, answer, limit=limit: 1 <= sentences(answer) <= limit), kind
    assert not wrong("write/title", lambda _, answer: len(answer.split()) <= 6 and answer[-1] not in ".!")
    assert not wrong("write/sentence", lambda word, answer: word in answer.lower())


@pytest.mark.parametrize(
    "british",
    [
        "colour",
        "neighbour",
        "favourite",
        "grey",
        "centre",
        "metre",
        "litre",
        "theatre",
        "traveller",
        "organise",
        "realise",
        "honour",
    ],
)
def test_spelling_is_american(british):
    assert [row for row in ROWS + SEEDS if re.search(rf"\b{british}", " ".join(row.values()), re.I)] == []
