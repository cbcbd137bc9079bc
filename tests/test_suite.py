"""The suite: items whose answers are found again by another rule, calls that are judged without being run."""

import re
from collections import Counter

import pytest

from lmsurvey_code.suite import (
    ABILITIES,
    arithmetic,
    baselines,
    load_facts,
    load_public,
    load_suite,
    same_value,
)


@pytest.mark.parametrize("ability", ABILITIES)
def test_each_ability_has_200_different_items_and_no_rule_without_reading_solves_it(ability):
    task = load_suite()[ability]
    assert len({item.context for item in task.items}) == len(task.items) >= 200
    assert len({item.id for item in task.items}) == len(task.items)
    assert max(baselines(task).values()) < (0.56 if len(task.items[0].choices) == 2 else 0.4)
    for item in task.items:
        assert item.context == item.context.rstrip()  # so that the answer begins with its space
        assert all(choice.startswith(" ") for choice in (item.choices or (item.target,)))
        assert len(set(item.choices)) == len(item.choices)


def asked(item):
    return item.context.rpartition("\n\n")[2]


def test_order_is_right_by_trying_all_orders():
    greater = re.compile(r"(\w+) is (older|taller|faster|stronger|younger|shorter|slower|weaker) than (\w+)\.")
    for item in load_suite()["reasoning"].items:
        above = {}
        for a, word, b in greater.findall(asked(item)):
            above |= {a: b} if word in ("older", "taller", "faster", "stronger") else {b: a}
        first = next(name for name in above if name not in above.values())
        last = next(name for name in above.values() if name not in above)
        wanted = re.search(r"The (\w+) of the three", asked(item))[1]
        right = first if wanted in ("oldest", "tallest", "fastest", "strongest") else last
        assert item.choices[item.answer] == f" {right}"


def test_the_way_is_that_of_the_room_with_the_thing():
    for item in load_suite()["interaction"].items:
        goal = re.search(r"The \w+ is in the (\w+)\.", asked(item))[1]
        assert re.search(rf"The {goal} is (\w+) of the", asked(item))[1] == item.choices[item.answer].strip()


def test_claims_are_true_in_half_of_the_items_and_marked_so():
    known = {(name, answer) for _, name, answer in load_facts()}
    counts = Counter()
    for item in load_suite()["human alignment"].items:
        name, said = re.search(r"of (.+) is (.+)\. Am I right\?", asked(item)).groups()
        assert item.choices[item.answer] == (" Yes" if (name, said) in known else " No")
        counts[item.choices[item.answer]] += 1
    assert abs(counts[" Yes"] - counts[" No"]) <= 1


def test_the_targets_of_tools_have_the_value_that_the_story_has():
    tasks = load_suite()["tools"].items
    for item in tasks:
        assert same_value(item.target, item.target)
        numbers = set(re.findall(r"\d+", asked(item)))
        assert set(re.findall(r"\d+", item.target)) <= numbers
    assert sum("*" in item.target for item in tasks) > 60


@pytest.mark.parametrize(("text", "value"), [("1 + 2 * 3", 7), ("(4 - 1) / 2", 1.5), (" -3*-2 ", 6), ("1.5", 1.5)])
def test_arithmetic_has_the_value(text, value):
    assert arithmetic(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "1 +", "2 ** 9", "a + 1", "abs(1)", "__import__('os')", "1 / 0", "True", "'a' * 3", "1, 2", "9" * 201, "1j",
     "(" * 150 + "1" + ")" * 40, "[1][0]", "1 if 1 else 2"],
)  # fmt: skip
def test_arithmetic_refuses_all_else(text):
    with pytest.raises(ValueError, match="expression: "):
        arithmetic(text)


def test_a_call_is_judged_by_its_value_and_form():
    target = " calculator(2 * 3 + 4)"
    assert same_value(" calculator(4 + 3 * 2)", target)
    assert not same_value(" calculator(2 * 3)", target)
    assert not same_value(" 10", target)
    assert not same_value(" calculator(2 * 3 + 4) and more", target)
    assert not same_value(" calculator(open('x'))", target)


# ---- public tasks ----

ROWS = {
    "arc_easy": (
        {"question": "Which is warm?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"},
        ("Question: Which is warm?\nAnswer:", (" ice", " fire"), 1),
    ),
    "hellaswag": (
        {"activity_label": "Baking", "ctx": "A man", "endings": ["bakes.", "flies."], "label": "0"},
        ("Baking: A man", (" bakes.", " flies."), 0),
    ),
    "boolq": (
        {"passage": "Ice is cold.", "question": "is ice cold", "answer": True},
        ("Ice is cold.\nQuestion: is ice cold?\nAnswer:", (" no", " yes"), 1),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_public_tasks_take_our_form(name):
    datasets = pytest.importorskip("datasets")
    row, wanted = ROWS[name]
    task = load_public(name, 2, rows=datasets.Dataset.from_list([row] * 3))
    assert [(item.context, item.choices, item.answer) for item in task.items] == [wanted] * 2
    assert [item.id for item in task.items] == [f"{name}-0", f"{name}-1"]


def test_public_tasks_that_cannot_be_had_say_so(monkeypatch):
    with pytest.raises(ValueError, match="name: 'x'; allowed: arc_easy, hellaswag, boolq"):
        load_public("x")

    def offline(*_):
        raise ConnectionError("no way to the Hub")

    monkeypatch.setattr("lmsurvey_code.suite._download", offline)
    with pytest.raises(ValueError, match="google/boolq cannot be had: no way to the Hub"):
        load_public("boolq")

    def missing(*_):
        raise ModuleNotFoundError("datasets")

    monkeypatch.setattr("lmsurvey_code.suite._download", missing)
    with pytest.raises(ValueError, match="needs the library datasets: pip install datasets"):
        load_public("boolq")
