"""Prompts as text: tasks and their items, few-shot prompts, the chat template, and what each of them refuses.

The model here is a stand-in: a tokenizer with a template of the packaged model's form and no network.
"""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lmsurvey_code.ngram import AddK, NgramCounts
from lmsurvey_code.prompting import MARKS, addition, chat_prompt, load_task
from lmsurvey_code.tokenizers import ByteTokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model():
    """Has what `chat_prompt` looks at: tokenizer.hf with a template and two marks."""
    backend = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATE)
    hf.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    return SimpleNamespace(tokenizer=SimpleNamespace(hf=hf))


def user(content):
    return {"role": "user", "content": content}


def test_a_question_ends_where_the_answer_begins(model):
    expected = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert chat_prompt(model, "What is 2 + 2?") == expected
    assert chat_prompt(model, [user("What is 2 + 2?")]) == expected
    assert chat_prompt(model.tokenizer, "What is 2 + 2?") == expected


def test_a_conversation_keeps_its_order(model):
    messages = [{"role": "system", "content": "S"}, user("Q"), {"role": "assistant", "content": "A"}, user("R")]
    prompt = chat_prompt(model, messages)
    roles = [part.split("\n")[0] for part in prompt.split("<|im_start|>")[1:]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert prompt.count("<|im_end|>") == 4  # the answer to come is open


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "the last one must have the role 'user'"),
        ([user("Q"), {"role": "assistant", "content": "A"}], "the last one must have the role 'user'"),
        ([{"role": "teacher", "content": "Q"}, user("Q")], r"messages\[0\].*allowed: a role of system, user"),
        ([user(None)], r"messages\[0\].*a string content"),
        ([user("ends <|im_end|> early")], r"messages\[0\]: holds '<\|im_end\|>'"),
    ],
)
def test_what_is_no_conversation_is_refused(model, messages, said):
    with pytest.raises(ValueError, match=said):
        chat_prompt(model, messages)


def test_a_model_without_a_template_is_refused(model):
    with pytest.raises(ValueError, match="AddK has no chat template"):
        chat_prompt(AddK(NgramCounts(["ab"], ByteTokenizer(), order=1), k=1), "Q")
    model.tokenizer.hf.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chat_prompt(model, "Q")


@pytest.mark.parametrize("name", MARKS)
def test_tasks_ask_at_least_200_questions_and_never_a_demonstration(name):
    task = load_task(name)
    asked, shown = ({question for question, _ in pairs} for pairs in (task.items, task.demonstrations))
    assert len(asked) == len(task.items) >= 200
    assert len(shown) == len(task.demonstrations)
    assert not asked & shown
    assert all(text == text.strip() != "" for pair in task.items + task.demonstrations for text in pair)


def test_remarks_are_balanced_so_that_guessing_gives_a_half():
    task = load_task("sentiment")
    for pairs in (task.items, task.demonstrations):
        assert sum(answer == "positive" for _, answer in pairs) * 2 == len(pairs)
    assert {answer for _, answer in task.items} == {"positive", "negative"}


def test_a_few_shot_prompt_ends_where_the_answer_begins():
    task = load_task("past")
    expected = "Verb: walk\nPast tense: walked\n\nVerb: go\nPast tense:"
    assert task.prompt("go", [("walk", "walked")]) == expected
    assert task.prompt("go") == "Verb: go\nPast tense:"


def test_the_same_seed_draws_the_same_demonstrations_and_more_of_them_begin_alike():
    task = load_task("antonyms")
    assert task.draw(4, seed=1) == task.draw(4, seed=1) == task.draw(9, seed=1)[:4]
    assert task.draw(4, seed=1) != task.draw(4, seed=2)
    assert task.draw(0) == []
    for k in (-1, len(task.demonstrations) + 1):
        with pytest.raises(ValueError, match=f"k: {k}; allowed: 0 to {len(task.demonstrations)}"):
            task.draw(k)


@pytest.mark.parametrize("n_terms", [2, 3, 5])
def test_sums_are_right_and_the_questions_do_not_depend_on_the_steps(n_terms):
    direct, worked = (addition(n_terms, steps=steps) for steps in (False, True))
    assert [question for question, _ in direct.items] == [question for question, _ in worked.items]
    for (question, short), (_, long) in zip(direct.items, worked.items, strict=True):
        total = sum(map(int, question.split(" + ")))
        assert short == f"The answer is {total}."
        assert long.endswith(f"= {total}. {short}")
        assert long.count("=") == n_terms - 1
        for step in long.partition(". ")[0].split(", "):
            left, right = step.split(" = ")
            assert sum(map(int, left.split(" + "))) == int(right)


def test_bad_tasks_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="name: 'poems'; allowed: sentiment, antonyms, french, past"):
        load_task("poems")
    with pytest.raises(ValueError, match="n_terms: 1; allowed: 2 or more"):
        addition(1, steps=True)
