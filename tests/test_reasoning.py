"""Tasks with checkable answers, ways of asking, searches and plans, and the small network that is rewarded."""

import re

import numpy as np
import pytest
import torch

from lmsurvey_code import reasoner
from lmsurvey_code.alignment import log_probs
from lmsurvey_code.llm import open_llm, write_many
from lmsurvey_code.reasoning import (
    FORM,
    LEVELS,
    N_SHOWN,
    Puzzle,
    after_step,
    ask,
    demonstrations,
    final_answer,
    held_out_puzzles,
    least_to_most,
    majority,
    problems,
    random_puzzle,
    random_steps,
    refine,
    solves,
    tree_search,
    write_lines,
)
from lmsurvey_code.training import TrainConfig, set_seed
from lmsurvey_code.transformer import Transformer


def exact(question):
    """The right answer to a question of either task, computed from its text."""
    if "+" in question:
        return str(sum(map(int, question.split("+"))))
    boxes = {"A": "A", "B": "B", "C": "C"}  # which box stands at each place
    ball = re.search(r"in (\w)", question)[1]
    for a, b in re.findall(r"Swap (\w) and (\w)", question):
        boxes[a], boxes[b] = boxes[b], boxes[a]
    return next(place for place, box in boxes.items() if box == ball)


# ---- problems in words ----


@pytest.mark.parametrize("name", ["sums", "boxes"])
def test_problems_are_right_different_and_as_many_of_each_level(name):
    shown, asked = problems(name)
    assert [sum(p.level == n for p in asked) for n in LEVELS] == [60] * 5
    assert [sum(p.level == n for p in shown) for n in LEVELS] == [N_SHOWN] * 5
    assert len({p.question for p in shown + asked}) == 300 + 5 * N_SHOWN
    for p in shown + asked:
        assert p.answer == exact(p.question) == p.parts[-1][1] == p.steps[-1].split()[-1]
        assert len(p.steps) == len(p.parts) == p.level - (name == "sums")
        assert final_answer(p.text(worked=True)) == final_answer(p.text(worked=False)) == p.answer
    assert problems(name) == (shown, asked)


def test_demonstrations_of_smaller_questions_are_right():
    for name in ("sums", "boxes"):
        pairs = demonstrations(problems(name)[0], "parts")
        assert all(final_answer(answer) == exact(question) for question, answer in pairs)
        assert len({question.count("+") + question.count("Swap") for question, _ in pairs}) == 1
    assert "{" not in str(pairs)


def test_a_chain_of_smaller_questions_carries_what_was_answered():
    _, asked = problems("sums", 50)
    calls = []

    def oracle(questions):
        calls.append(questions)
        return [f"The answer is {exact(q)}." for q in questions]

    assert least_to_most(asked, oracle) == [p.answer for p in asked]
    assert [len(questions) for questions in calls] == [50, 40, 30, 20, 10]  # a sum of n terms has n - 1 parts
    level_3 = [p for p in asked if p.level == 3][:1]
    assert least_to_most(level_3, lambda qs: ["The answer is 100."] * len(qs)) == ["100"]
    seen = []
    least_to_most(level_3, lambda qs: seen.extend(qs) or ["The answer is 100."])
    assert seen[1].startswith("100 + ")  # the answer given, not the right one
    assert least_to_most(level_3, lambda qs: ["I do not know."] * len(qs)) == [None]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 12. The answer is 13.", "12"),
        ("so the answer is B", "B"),
        ("8 + 1 = 9\nThe answer is 9.", None),  # in the second line
        ("", None),
    ],
)
def test_final_answer(text, found):
    assert final_answer(text) == found


def test_majority_counts_answers_alone():
    assert majority(["7", "9", "9", None, None, None]) == "9"
    assert majority(["8", "7", "7", "8"]) == "8"  # of equals the first
    assert majority([None, None]) is None


def test_bad_input_of_problems():
    with pytest.raises(ValueError, match="name: 'maze'; allowed: sums, boxes"):
        problems("maze")
    with pytest.raises(ValueError, match="n_items: 7; allowed: a multiple of 5"):
        problems("sums", 7)
    with pytest.raises(ValueError, match="way: 'x'; allowed: direct, steps, parts"):
        demonstrations([], "x")
    with pytest.raises(ValueError, match="n_numbers: 2; allowed: 3, 4"):
        random_puzzle(2, np.random.default_rng(0))


# ---- what an LLM writes ----


@pytest.fixture(scope="module")
def llm():
    return open_llm("smollm2-135m", quiet=True)


def test_lines_are_the_first_lines_of_greedy_texts(llm):
    shown, asked = problems("sums", 5)
    written = ask(llm, shown, asked[:2], "direct")
    for problem, line in zip(asked, written, strict=False):
        pairs = demonstrations([p for p in shown if p.level == problem.level], "direct")
        (ids,) = write_many(llm, [FORM.prompt(problem.question, pairs)], 12)
        assert line == llm.tokenizer.decode(ids).partition("\n")[0].strip()
        assert final_answer(line) is not None


def test_drawn_lines_are_the_same_for_the_same_seed_and_greedy_when_cold(llm):
    prompts = ["Question: 2 + 2\nAnswer:", "Question: 5 + 1\nAnswer:"]
    hot = [write_lines(llm, prompts, 6, seed=seed, temperature=2.0) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    assert write_lines(llm, prompts, 6, seed=0, temperature=0.001) == write_lines(llm, prompts, 6)


# ---- puzzles ----


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("4 * 7 = 28", (5, 28)),
        ("7 - 4 = 3", (3, 5)),
        (" 4 + 5 = 9 ", (7, 9)),
        ("4 * 7 = 27", None),  # wrong
        ("4 + 4 = 8", None),  # there is one 4
        ("4 - 7 = -3", None),
        ("5 - 5 = 0", None),
        ("8 * 7 = 56", None),
        ("4*7=28", None),
    ],
)
def test_after_step(step, left):
    assert after_step((4, 5, 7), step) == left


def test_only_the_last_attempt_counts_and_all_numbers_are_used():
    puzzle = Puzzle((4, 5, 7), 23)
    assert solves(puzzle, "4 * 7 = 28 , 28 - 5 = 23")
    assert solves(puzzle, "4 + 5 = 9 , 7 + 9 = 16 / 4 * 7 = 28 , 28 - 5 = 23")
    assert not solves(puzzle, "4 * 7 = 28 , 28 - 5 = 23 / 4 + 5 = 9 , 7 + 9 = 16")
    assert not solves(Puzzle((4, 5, 7), 9), "4 + 5 = 9")
    assert not solves(Puzzle((4, 5, 7), 23, broken="*"), "4 * 7 = 28 , 28 - 5 = 23")
    assert not solves(puzzle, "")
    assert not solves(Puzzle((10, 12, 70), 50), "10 * 12 = 120 , 120 - 70 = 50")  # a step makes 50 at most


def test_no_training_sees_a_held_out_puzzle():
    held_out = {p.prompt for n in (3, 4) for p in held_out_puzzles(n)}
    assert len(held_out) == 600
    rng = np.random.default_rng(0)
    texts = [reasoner.example(rng) for _ in range(3000)]
    assert not held_out & {re.sub(r" # .", "", prompt) for prompt, _ in texts}
    assert {p.held_out for p in held_out_puzzles(3, with_broken=True)} == {True}
    assert all(solves(p, p.solution) for p in held_out_puzzles(3, with_broken=True))


def test_tree_search_keeps_what_is_possible_and_most_proposed():
    puzzle = Puzzle((4, 5, 7), 23)
    asked = []

    def propose(prompts, depth):
        asked.append(prompts)
        if depth == 0:
            return ["4 * 7 = 28 , 28 + 5 = 33", "4 * 7 = 28", "4 + 5 = 9", "4 + 5 = 10"]
        return ["28 - 5 = 23"] * len(prompts)

    assert tree_search([puzzle], propose, k=4, breadth=1) == ([True], [8])
    assert asked[1] == ["5 28 > 23 :"] * 4  # the state of two proposals, not that of one
    asked.clear()
    assert tree_search([puzzle], propose, k=4, breadth=2) == ([True], [12])
    assert set(asked[1]) == {"5 28 > 23 :", "7 9 > 23 :"}
    assert tree_search([puzzle], lambda prompts, depth: ["4 * 7 = 23"] * len(prompts), 4, 2) == ([False], [4])


def test_a_plan_is_refined_when_what_is_broken_is_told():
    puzzle = Puzzle((2, 3, 4), 24, broken="*")
    sums = Puzzle((2, 3, 4), 9, broken="*")

    def planner(prompts, number):
        return ["2 + 3 = 5 , 4 + 5 = 9" if "# *" in p else "2 * 3 = 6 , 4 * 6 = 24" for p in prompts]

    assert refine([puzzle, sums], planner, 3, feedback=True) == [None, 2]
    assert refine([puzzle, sums], planner, 3, feedback=False) == [None, None]
    assert refine([Puzzle((2, 3, 4), 24, broken="-")], planner, 3, feedback=True) == [1]


# ---- the small network ----


def test_rows_hold_prompts_and_texts_and_say_what_counts():
    rows = reasoner.rows_of(["4 5 7 > 23 :", "2 2 3 > 7 # - :"], ["4 * 7 = 28 , 28 - 5 = 23", ""])
    symbols = [[reasoner.SYMBOLS[i] for i in row] for row in rows.tokens]
    assert symbols[0][: reasoner.PROMPT] == [".", ".", ".", *["4", "5", "7", ">", "23", ":"]]
    assert [s for s, c in zip(symbols[0], rows.counted[0], strict=True) if c] == [
        *["4", "*", "7", "=", "28", ",", "28", "-", "5", "=", "23"],
        "\n",
    ]
    assert rows.counted.sum(1).tolist() == [12, 1]
    with pytest.raises(ValueError, match="prompt: '4 5 99 > 7 :'; allowed: at most 9 symbols"):
        reasoner.read_prompt("4 5 99 > 7 :")


def test_what_is_written_greedily_is_most_likely_at_each_place():
    set_seed(0)
    net = Transformer(reasoner.CONFIG)
    prompts = ["4 5 7 > 23 :", "2 3 3 12 > 20 :"]
    texts = reasoner.write(net, prompts, seed=None)
    rows = reasoner.rows_of(prompts, texts)
    best = net(rows.tokens[:, :-1]).argmax(-1)
    counted = rows.counted[:, 1:]
    assert torch.equal(best[counted], rows.tokens[:, 1:][counted])
    assert reasoner.write(net, prompts, seed=1) == reasoner.write(net, prompts, seed=1)
    stopped = reasoner.write(net, prompts * 8, seed=1, stop="\n,/:")
    assert not any(set(text.split()) & set(",/:") for text in stopped)


def test_weights_come_back(tmp_path):
    set_seed(1)
    net = Transformer(reasoner.CONFIG)
    reasoner.save(net, tmp_path / "a.safetensors")
    again = reasoner.load(tmp_path / "a.safetensors")
    rows = reasoner.rows_of(["4 5 7 > 23 :"], ["4 * 7 = 28"])
    assert torch.allclose(log_probs(net, rows)[0], log_probs(again, rows)[0], atol=0.01)
    with pytest.raises(FileNotFoundError, match="is missing; allowed: a file of `save`"):
        reasoner.load(tmp_path / "b.safetensors")


def test_careless_texts_are_possible_and_mostly_given_up():
    rng = np.random.default_rng(0)
    puzzles = [random_puzzle(3, rng) for _ in range(2000)]
    texts = [reasoner.careless(p, rng) for p in puzzles]
    hit = np.mean([solves(p, text) for p, text in zip(puzzles, texts, strict=True)])
    assert 0.6 < hit < 0.85  # half at once, and some later or by chance
    assert max(text.count("/") for text in texts) == reasoner.MOST_ATTEMPTS - 1
    drawn = random_steps((12, 12, 12), rng, broken="+")
    assert drawn == ""  # 12 - 12 and 12 * 12 are not possible


def test_grpo_makes_rewarded_texts_more_frequent():
    set_seed(0)
    net = Transformer(reasoner.CONFIG)
    seen = []
    history = reasoner.grpo(
        net, TrainConfig(16, 4, 1, 3e-3, warmup=2), 8, lambda puzzle, text: 1 / (1 + len(text.split())), seen.append
    )
    assert seen == list(range(16))
    short = [row["n_symbols"] for row in history]
    assert np.mean(short[-3:]) < 0.6 * np.mean(short[:3])  # short texts were rewarded
    assert np.mean([row["reward"] for row in history[-3:]]) > np.mean([row["reward"] for row in history[:3]])


def test_grpo_learns_nothing_where_all_texts_are_worth_the_same():
    set_seed(0)
    net = Transformer(reasoner.CONFIG)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    reasoner.grpo(net, TrainConfig(2, 2, 1, 3e-3, warmup=0), 4, lambda puzzle, text: 1.0)
    assert all(torch.allclose(p, before[name], atol=1e-6) for name, p in net.named_parameters())
