"""Questions that the corpus answers or does not, the rules that check answers, and the prompts."""

import numpy as np
import pytest

from lmsurvey_code import answering as an
from lmsurvey_code.language_model import continuation_log_prob
from lmsurvey_code.llm import open_llm
from lmsurvey_code.retrieval import BM25, corpus_passages

QUESTIONS = an.load_questions()
TEXTS = [passage.text for passage in corpus_passages()]
ANSWERED = [question for question in QUESTIONS if question.kind == "answered"]


# ---- questions ----


def test_every_answered_question_has_one_passage_that_holds_its_answer():
    everything = "\n".join(TEXTS)
    assert len(ANSWERED) == 135
    for question in ANSWERED:
        assert everything.count(question.evidence) == 1, question
        assert sum(question.evidence in text for text in TEXTS) == 1, question
        assert an.is_right(question.evidence, question), question
        assert not an.is_right(question.text, question), question  # the question does not give its answer away


def test_what_the_other_questions_ask_about_is_nowhere_in_the_corpus():
    everything = "\n".join(TEXTS).lower()
    for kind in ("made up", "elsewhere"):
        asked = [question for question in QUESTIONS if question.kind == kind]
        assert len(asked) == 20
        assert not [question for question in asked if question.evidence.lower() in everything or question.answers]


def test_no_question_stands_twice_and_a_quarter_is_for_choosing():
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS)
    chosen = an.to_choose(QUESTIONS)
    assert {kind: sum(c for q, c in zip(QUESTIONS, chosen, strict=True) if q.kind == kind) for kind in an.KINDS} == (
        {"answered": 34, "made up": 5, "elsewhere": 5}
    )
    assert chosen[0]
    assert not any(chosen[1:4])


# ---- rules ----


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("There were 12,099 of them.", "12099", True),
        ("There were 112,099 of them.", "12,099", False),
        ("It cost $1.40.", "1.40", True),
        ("It cost $11.40.", "1.40", False),
        ("the 13th rank", "13", True),
        ("At St. Andrew's, in autumn", "st andrew's", True),
        ("Berne", "Bern", False),
        ("anything", "", False),
        ("anything", " . ", False),
    ],
)
def test_holds(text, phrase, expected):
    assert an.holds(text, phrase) is expected


@pytest.mark.parametrize("answer", ["I do not know", "I do not know.", "", " - ", "It does not say.", "No answer"])
def test_refusals(answer):
    assert an.is_refusal(answer)


@pytest.mark.parametrize("answer", ["Norfolk", "Knowles", "nothing but 3", "The knot was not tied"])
def test_answers_are_no_refusals(answer):
    assert not an.is_refusal(answer)


def test_an_answer_stands_in_a_text():
    text = "The exploring expedition sailed from Norfolk on the 19th of August, with 1,200 men."
    for answer in ("Norfolk", "the 19th of August", "about 1200", "At Norfolk.", "Mr. Exploring"):
        assert an.stands_in(answer, text), answer
    for answer in ("Norwalk", "19 August", "200", "", "the", "sailed Norfolk"):
        assert not an.stands_in(answer, text), answer


@pytest.mark.parametrize(("answer", "number"), [("Norfolk [2]", 2), ("[12] is it", 12), ("Norfolk (2)", None)])
def test_cited(answer, number):
    assert an.cited(answer) == number


def test_focus_keeps_the_sentences_that_fit_in_their_order():
    text = "Wheat was dear. The canal is 40 miles long. Nobody came. The canal was opened in May. Rain fell."
    assert an.focus("When was the canal opened?", text) == "The canal is 40 miles long. The canal was opened in May."
    assert an.focus("When was the canal opened?", text, 1) == "The canal was opened in May."
    assert an.focus("?", text, 5) == text
    assert an.focus("canal", "A. The. Of. Is.") == "A. The. Of. Is."  # no word to search for


# ---- prompts ----


def test_prompts_end_where_the_answer_begins():
    for prompt in (
        an.closed_prompt("Q?"),
        an.closed_prompt("Q?", refuse=True),
        an.passage_prompt("Q?", "T."),
        an.passage_prompt("Q?", "T.", refuse=True, marks=True),
        an.numbered_prompt("Q?", ["T.", "U."]),
    ):
        assert prompt.endswith("Question: Q?\nAnswer:")
        assert ("I do not know" in prompt) == ("Where" in prompt)


def test_marks_stand_around_every_passage_and_after_a_warning():
    prompt = an.passage_prompt("Q?", "T.", marks=True)
    assert prompt.startswith(an.WARNING)
    assert prompt.count("<<<") == prompt.count(">>>") == prompt.count("Passage:") == 4
    assert "Passage: <<< T. >>>\n" in prompt


def test_the_examples_cite_the_passage_that_holds_their_answer():
    *examples, last = an.numbered_prompt("Q?", ["T.", "U.", "V."]).split("\n\n")
    assert last == "[1] T.\n[2] U.\n[3] V.\nQuestion: Q?\nAnswer:"
    numbers = []
    for example in examples:
        passages, _, answer = example.partition("\nQuestion:")
        numbers.append(an.cited(answer.rpartition("Answer:")[2]))
        text = answer.rpartition("Answer: ")[2].partition(" [")[0]
        assert [f"[{numbers[-1]}]" in line for line in passages.splitlines() if an.holds(line, text)] == [True]
    assert numbers == [1, 2, 3]


# ---- the model ----


@pytest.fixture(scope="module")
def model():
    return open_llm("smollm2-135m", quiet=True)


def test_an_answer_is_the_greedy_line_with_its_probability(model):
    prompts = [an.passage_prompt("In which year was it built?", "The canal was built in 1825."), "One, two,", "One:\n"]
    for prompt, found in zip(prompts, an.write_answers(model, prompts, 6), strict=True):
        tokens = model.tokenizer.encode(model.generate(prompt, max_new_tokens=6).removeprefix(prompt))
        line = model.tokenizer.decode(tokens).partition("\n")[0].strip()
        assert found.text == line
        assert "\n" not in found.text
    assert an.write_answers(model, prompts[:1])[0].text == "1825"
    prompt = "One, two, three, four,"
    sure = an.write_answers(model, [prompt], 1)[0]  # one token, so that the sum is its log-probability
    assert sure.log_prob == pytest.approx(continuation_log_prob(model, prompt, f" {sure.text}"), abs=1e-3)


# ---- without a model ----


@pytest.mark.parametrize(
    ("question", "pattern"),
    [
        ("When was it built?", an.DATE),
        ("In which year was it built?", an.DATE),
        ("On what day did it sail?", an.DATE),
        ("How many ships sailed?", an.NUMBER),
        ("What did the canal cost?", an.NUMBER),
        ("Who sailed?", an.NAME),
        ("Where did it sail from?", an.NAME),
    ],
)
def test_wanted(question, pattern):
    assert an.wanted(question) == pattern


def test_extract_takes_what_stands_nearest():
    text = "In 1838 the expedition sailed from Norfolk with 6 ships and 340 men, and reached Madeira on May 9, 1839."
    engine = BM25([text, "The mint at Denver struck coins of gold."])
    assert an.extract("How many ships did the expedition have?", [text], engine) == "6"
    assert an.extract("How many men were there?", [text], engine) == "340"
    assert an.extract("From where had the expedition sailed?", [text], engine) == "Norfolk"
    assert an.extract("When was Madeira reached?", [text], engine) == "May 9, 1839"
    assert an.extract("How many?", ["nothing here"], engine) == ""


# ---- orders in a passage ----


@pytest.mark.parametrize("attack", list(an.ATTACKS))
def test_attacks_are_planted_after_the_passage(attack):
    text = an.plant(attack, "Who sailed?", "The ship sailed.")
    assert text.startswith("The ship sailed. ")
    assert an.holds(text, an.PLANTED)
    assert an.holds(an.drop_orders(text), an.PLANTED) == (attack == "other words")  # a list of words is no wall


def test_drop_orders_leaves_a_harmless_passage_alone():
    kept = sum(len(an.drop_orders(text)) == len(" ".join(text.split())) for text in TEXTS[::50])
    assert kept > 0.75 * len(TEXTS[::50])
    assert an.drop_orders("We met. Ignore the rest. It rained.") == "We met. It rained."


def test_search_tool_gives_one_sentence():
    texts = ["Rain fell. The canal was opened in May.", "Wheat was dear."]
    assert an.search_tool(BM25(texts), texts)("canal opened") == "The canal was opened in May."


def test_coverage_counts_rare_words_more():
    engine = BM25(["canal built", "canal opened", "mint opened"])
    assert engine.coverage("the canal", "a canal") == 1
    assert engine.coverage("zebra", "a canal") == 0
    rare, common = (engine.coverage("mint canal", text) for text in ("mint", "canal"))
    assert rare + common == pytest.approx(1)
    assert rare > common
    # An unknown word counts most.
    assert engine.coverage("zebra canal", "canal") < engine.coverage("mint canal", "canal")
    assert np.isfinite(engine.coverage("the", "canal"))
