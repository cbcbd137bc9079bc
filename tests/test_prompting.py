"""The chat template as a function from messages to text: what it adds, and what it refuses.

The model here is a stand-in: a tokenizer with a template of the packaged model's form and no network.
"""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lmsurvey_code.ngram import AddK, NgramCounts
from lmsurvey_code.prompting import chat_prompt
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
