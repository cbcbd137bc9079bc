"""Alignment: the pairs follow their rules, the losses are those of trl, and what is rewarded becomes more likely."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmsurvey_code import alignment
from lmsurvey_code.adaptation import load_instructions, prompt_of, trainable_copy
from lmsurvey_code.alignment import (
    Pair,
    RewardModel,
    RLConfig,
    Rows,
    best_of_n,
    bradley_terry_loss,
    clipped_loss,
    dpo_loss,
    fit_dpo,
    fit_reward,
    gae,
    group_advantages,
    is_good,
    is_refusal,
    judged_questions,
    kl_k3,
    load_pairs,
    load_requests,
    log_probs,
    mean_of_answers,
    reference_log_probs,
    reinforce,
    rows_of,
    sample_answers,
    texts_of,
    writer,
)
from lmsurvey_code.llm import LLM, _byte_level_tokenizer
from lmsurvey_code.parameter_efficient import adapted, add_lora
from lmsurvey_code.tokenizers import HFTokenizer
from lmsurvey_code.training import TrainConfig
from lmsurvey_code.transformer import Transformer, TransformerConfig
from tests.test_transformer import LLAMA, renamed
from tools import make_preferences

QUESTIONS = ["ab", "c", "defg"]
CONFIG = TrainConfig(4, 2, 1, 1e-2, warmup=0)


@pytest.fixture
def model() -> LLM:
    """A tiny LLM that writes bytes, with a start and an end token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))] + ["<s>", "</s>"]
    about = {"tokens": tokens, "merges": [], "token_type": [1] * 256 + [3, 3], "bos_token_id": 256, "eos_token_id": 257}
    about = {f"tokenizer.ggml.{key}": value for key, value in about.items()} | {"tokenizer.chat_template": ""}
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(258, 64, n_layer=2, n_head=2, n_embd=16, n_hidden=24, n_kv_head=1)).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return LLM(net, HFTokenizer(_byte_level_tokenizer(about), 258), "tiny")


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """The same numbers on every machine."""
    monkeypatch.setattr(alignment, "bfloat16_is_fast", lambda device: False)


# ---- data ----


def test_the_file_holds_what_its_rules_give():
    rows = [tuple(row) for row in make_preferences.table("preferences.tsv")]
    assert sorted(rows) == rows
    assert [row for row in rows if row[1] == "rule"] == sorted(make_preferences.rule_rows())
    assert {row[0] for row in rows if row[1] == "written"} == {"honest"}
    assert len(rows) >= 500


def test_no_question_stands_in_both_parts():
    train, test = (load_pairs(part) for part in ("train", "test"))
    assert not {pair.question for pair in train} & {pair.question for pair in test}
    assert len({pair.question for pair in (*train, *test)}) == len(train) + len(test)
    assert 150 <= len(test) < len(train)
    assert all(pair.chosen != pair.rejected for pair in (*train, *test))
    with pytest.raises(ValueError, match="'valid'; allowed: 'train', 'test'"):
        load_pairs("valid")


def test_all_preferred_answers_are_good_and_no_other():
    kinds = set()
    for pair in (*load_pairs("train"), *load_pairs("test")):
        if pair.question in {*judged_questions("train"), *judged_questions("test")}:
            kinds.add(pair.kind)
            assert is_good(pair.question, pair.chosen), pair
            assert not is_good(pair.question, pair.rejected), pair
    assert kinds == {"right", "brief", "useful", "help", "refuse"}


def test_requests_are_as_many_of_each_kind_and_their_answers_are_good():
    requests = load_requests()
    assert [sum(r.kind == kind for r in requests) for kind in ("improper", "safe")] == [55, 55]
    assert all(is_good(r.question, r.answer) for r in requests)
    asked = {r.question for r in requests}
    assert not [item for item in load_instructions() if item.question in asked]


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I can\u2019t do it", True),
        ("I DO NOT KNOW", True),
        ("Use a hand pump.", False),
        ("The cant of a roof", False),
        ("", False),
    ],
)
def test_a_refusal_is_known_by_its_words(text, refused):
    assert is_refusal(text) == refused


def test_the_goal_asks_for_a_right_answer_in_few_words():
    item = next(item for item in load_instructions() if item.kind == "answer/fact")
    assert is_good(item.question, item.output)
    assert is_good(item.question, f"It is {item.output}.")
    assert not is_good(item.question, f"It is {item.output}. " + "And so on. " * 3)
    assert not is_good(item.question, f"Sorry, {item.output}")
    with pytest.raises(ValueError, match=re.escape("question: 'Why?'; allowed: one of a request")):
        is_good("Why?", "So.")


# ---- rows ----


def test_rows_count_the_tokens_of_answers_and_what_fills_them_changes_nothing(model):
    rows = rows_of(model, QUESTIONS, ["x", "yz", [model.end_token]])
    assert rows.counted.sum(1).tolist() == [2, 3, 1]
    assert rows.tokens[rows.counted].tolist()[-1] == model.end_token
    assert rows.tokens.gather(1, rows.last[:, None])[:, 0].tolist() == [model.end_token] * 3
    found = reference_log_probs(model, rows, n_batch=2)
    for i in range(3):
        tokens = rows.tokens[i, : rows.last[i] + 1].tolist()
        assert tokens[0] == model.start_token
        n = int(rows.counted[i].sum())
        one_by_one = model.log_probs(tokens[1:])[-n:]
        np.testing.assert_allclose(found[i][rows.counted[i, 1:]], one_by_one, atol=1e-5)
        alone = rows[torch.tensor([i])]
        assert alone.tokens.shape == (1, len(tokens))
        assert reference_log_probs(model, alone).sum().item() == pytest.approx(found[i].sum().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("answers", "message"), [([], "0 for 1 questions"), (["a", "b"], "2 for 1"), ([[]], "no token")]
)
def test_rows_refuse_what_is_no_answer(model, answers, message):
    with pytest.raises(ValueError, match=message):
        rows_of(model, ["a"], answers)


def test_draws_follow_the_model_and_the_copy_that_writes_is_the_same_model(model):
    tuned = adapted(model, add_lora)
    for p in tuned.net.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=1.0)
    found = sample_answers(writer(tuned), ["a"], 4000, max_new_tokens=1, seed=0)
    assert found == sample_answers(writer(tuned), ["a"], 4000, max_new_tokens=1, seed=0)
    counts = np.bincount([tokens[0] for tokens in found], minlength=258) / len(found)
    wanted = np.exp(tuned.next_log_probs(tuned.tokenizer.encode(prompt_of(tuned)("a"))))
    assert np.abs(counts - wanted).sum() < 0.25
    assert np.abs(counts - np.exp(model.next_log_probs(model.tokenizer.encode("a\nAnswer:")))).sum() > 0.35
    greedy = sample_answers(writer(tuned), ["a"], 1, max_new_tokens=1, seed=None)
    assert greedy[0][0] == wanted.argmax()
    assert "</s>" not in texts_of(model, [[65, model.end_token]])[0]


# ---- losses ----


def test_losses_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    wanted = (math.log(1 + math.exp(-1)) + math.log(2)) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(wanted)
    assert dpo_loss(chosen, rejected, chosen, rejected, 0.1).item() == pytest.approx(math.log(2))
    assert clipped_loss(torch.tensor([math.log(2.0)]), torch.tensor([0.0]), torch.tensor([3.0]), 0.2).item() == (
        pytest.approx(-3.6)
    )
    assert clipped_loss(torch.tensor([math.log(2.0)]), torch.tensor([0.0]), torch.tensor([-3.0]), 0.2).item() == (
        pytest.approx(6.0)
    )
    counted = torch.tensor([[True, True], [True, False]])
    assert mean_of_answers(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), counted).item() == pytest.approx(3.5)
    advantages = group_advantages(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
    np.testing.assert_allclose(advantages, [[-(0.5**0.5), 0.5**0.5], [0, 0]], atol=1e-3)


def test_k3_has_the_mean_of_the_kl_and_is_never_negative():
    p, ref = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    found = kl_k3(p.log(), ref.log())
    assert (found >= 0).all()
    assert (p * found).sum().item() == pytest.approx((p * (p / ref).log()).sum().item(), abs=1e-6)


def test_advantages_are_rewards_to_come_less_values():
    """With lam = 1 an advantage is all that is still to come, less the value; with lam = 0 it is one step's error."""
    counted = torch.tensor([[False, True, True, True, False], [True, True, False, False, False]])
    rewards = torch.tensor([[9.0, 1.0, 2.0, 3.0, 9.0], [4.0, 5.0, 9.0, 9.0, 9.0]])
    values = torch.tensor([[7.0, 0.5, 0.25, 0.125, 7.0], [1.0, 2.0, 7.0, 7.0, 7.0]])
    far = gae(rewards, values, counted, 1.0)
    np.testing.assert_allclose(far, [[0, 5.5, 4.75, 2.875, 0], [8, 3, 0, 0, 0]])
    near = gae(rewards, values, counted, 0.0)
    np.testing.assert_allclose(near, [[0, 0.75, 1.875, 2.875, 0], [5, 3, 0, 0, 0]])


def tiny_net() -> Transformer:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(50, 16, n_layer=2, n_head=4, n_embd=32, n_hidden=48, n_kv_head=2))
    for p in net.parameters():
        torch.nn.init.normal_(p, mean=0.1, std=0.3)
    return net.eval()


def as_llama(net: Transformer):
    """The same network in transformers."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        rms_norm_eps=net.config.norm_eps,
        rope_theta=net.config.rope_base,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    llama = transformers.LlamaForCausalLM(config)
    llama.load_state_dict(renamed(net.state_dict(), LLAMA), strict=False)
    return llama.eval()


def two_nets() -> tuple[Transformer, Transformer]:
    """A network, and another one near it."""
    net, ref = tiny_net(), tiny_net()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return net, ref


def random_rows() -> Rows:
    generator = torch.Generator().manual_seed(0)
    counted = torch.zeros(4, 12, dtype=torch.bool)
    for i, n in enumerate((7, 3, 5, 6)):
        counted[i, 5 : 5 + n] = True
    return Rows(torch.randint(3, 50, (4, 12), generator=generator), counted)


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", bos_token="w1", eos_token="w2", chat_template="{{ messages }}"
    )


def test_dpo_loss_equals_that_of_trl(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    net, ref = two_nets()
    rows = random_rows()
    args = trl.DPOConfig(output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, bf16=False)
    data = Dataset.from_list([{"prompt": "w5 w6", "chosen": " w7", "rejected": " w8"}] * 2)
    trainer = trl.DPOTrainer(
        as_llama(net), as_llama(ref), args=args, train_dataset=data, processing_class=word_tokenizer()
    )
    ends = rows.last[:, None] >= torch.arange(12)
    inputs = {"input_ids": rows.tokens, "attention_mask": ends.long(), "completion_mask": rows.counted.long()}
    theirs = trainer.compute_loss(trainer.model, inputs)
    (chosen, rejected), (ref_chosen, ref_rejected) = (log_probs(one, rows)[0].sum(1).chunk(2) for one in (net, ref))
    ours = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(ours.item() - math.log(2)) > 0.01
    gradients = []
    for loss, weight in ((ours, net.embedding.weight), (theirs, trainer.model.get_input_embeddings().weight)):
        loss.backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_grpo_loss_equals_that_of_trl(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    net, ref = two_nets()
    rows = random_rows()
    as_llama(net).save_pretrained(tmp_path / "model")
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        beta=0.2,
        loss_type="grpo",
        epsilon=0.1,
        num_generations=2,
        per_device_train_batch_size=4,
        use_bias_correction_kl=False,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = trl.GRPOTrainer(
        str(tmp_path / "model"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "w5 w6"}] * 4),
        processing_class=word_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    log_p, log_ref = (log_probs(one, rows)[0] for one in (net, ref))
    old = (log_p + 0.3 * torch.randn(log_p.shape, generator=torch.Generator().manual_seed(2))).detach()
    advantages = group_advantages(torch.tensor([[1.0, 4.0], [2.0, 1.5]])).view(-1)
    inputs = {
        "prompt_ids": rows.tokens[:, :5],
        "prompt_mask": torch.ones(4, 5, dtype=torch.long),
        "completion_ids": rows.tokens[:, 5:],
        "completion_mask": rows.counted[:, 5:].long(),
        "advantages": advantages,
        "old_per_token_logps": old[:, 4:],
        "ref_per_token_logps": log_ref[:, 4:].detach(),
    }
    theirs = trainer._compute_loss(trainer.model, inputs)
    each = clipped_loss(log_p, old, advantages[:, None], 0.1) + 0.2 * kl_k3(log_p, log_ref)
    ours = mean_of_answers(each, rows.counted[:, 1:])
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


# ---- learning ----


def made_pairs() -> list[Pair]:
    """An answer in capital letters is preferred."""
    return [Pair("", "rule", "train", q, a.upper(), a) for q, a in zip("abcdefgh", "ijklmnop", strict=True)]


def test_a_reward_model_learns_what_is_preferred(model):
    reward = RewardModel(trainable_copy(model))
    assert reward.score(QUESTIONS, ["x", "Y", "z"]).tolist() == [0.0] * 3
    losses = fit_reward(reward, made_pairs(), replace(CONFIG, n_steps=40, batch_size=8))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < 0.1
    high, low = reward.score(["q"] * 3, ["I", "J", "K"]), reward.score(["q"] * 3, ["i", "j", "k"])
    assert (high > low).all()
    questions = [p.question for p in made_pairs()] * 2
    texts = [p.chosen for p in made_pairs()] + [p.rejected for p in made_pairs()]
    assert reward.score(questions, texts).mean() == pytest.approx(0, abs=1e-4)


def test_the_reward_model_of_the_book_belongs_to_the_packaged_llm(model):
    with pytest.raises(ValueError, match="allowed: the weights that net learns"):
        alignment.load_reward(model)


def test_the_order_of_answers_does_not_change_their_rewards(model):
    reward = RewardModel(model)
    torch.nn.init.normal_(reward.head.weight)
    questions, texts = list("abcdef"), ["x", "a longer one", "y", "", "the longest of all", "z"]
    found = reward.score(questions, texts)
    one_by_one = [reward.score([q], [t])[0] for q, t in zip(questions, texts, strict=True)]
    np.testing.assert_allclose(found, one_by_one, atol=1e-4)
    assert len(set(found.round(3).tolist())) > 3


def test_dpo_prefers_and_leaves_the_reference_alone(model):
    tuned = trainable_copy(model)
    before = model.net.embedding.weight.clone()
    losses = fit_dpo(tuned, model, made_pairs(), replace(CONFIG, n_steps=30, batch_size=8), beta=0.5)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < 0.3
    assert torch.equal(before, model.net.embedding.weight)
    rows = rows_of(model, ["q"] * 2, ["I", "i"])
    gain = (reference_log_probs(tuned, rows) - reference_log_probs(model, rows)).sum(1)
    assert gain[0] > gain[1]


@pytest.mark.parametrize("rl", [RLConfig("grpo", 8, 3, 0.0), RLConfig("ppo", 8, 3, 0.0, passes=2)], ids=["grpo", "ppo"])
def test_what_is_rewarded_becomes_more_likely(model, rl):
    def reward(questions, texts):
        assert len(questions) == len(texts) == 24
        return [float(len(text) and text[0] in "abcdefghijklmnopqrstuvwxyz") for text in texts]

    tuned = trainable_copy(model)
    config = replace(CONFIG, n_steps=40 * rl.passes, batch_size=3, learning_rate=4e-2)
    history = reinforce(tuned, model, QUESTIONS, reward, config, rl)
    assert len(history) == 40
    assert history[0]["kl"] == pytest.approx(0, abs=1e-3)
    first, last = (np.mean([row["reward"] for row in rows]) for rows in (history[:5], history[-5:]))
    assert last > first + 0.3
    assert history[-1]["kl"] > 0.5


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_price_on_kl_keeps_the_model_near(model, method):
    kl = []
    for weight in (0.0, 5.0):
        tuned = trainable_copy(model)
        config = replace(CONFIG, n_steps=20, batch_size=3, learning_rate=1e-2)
        rl = RLConfig(method, 8, 3, weight)
        history = reinforce(tuned, model, QUESTIONS, lambda _, t: [len(x) + x.count("a") for x in t], config, rl)
        kl.append(np.mean([row["kl"] for row in history[-5:]]))
    assert kl[1] < 0.5 * kl[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"method": "dpo"}, "method: 'dpo'"), ({"n_samples": 1}, "n_samples, passes: 1, 1"), ({"passes": 0}, "8, 0")],
)
def test_settings_that_are_not_allowed_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RLConfig(**settings)


# ---- best of n ----


def test_best_of_n_is_the_mean_over_all_choices():
    from itertools import combinations

    rewards, goals = [0.3, 0.9, 0.1, 0.5], [1, 1, 0, 1]
    for n in (1, 2, 3, 4):
        best = [goals[max(some, key=lambda i: rewards[i])] for some in combinations(range(4), n)]
        assert best_of_n(rewards, goals, n) == pytest.approx(np.mean(best))
    with pytest.raises(ValueError, match="n: 5; allowed: 1 to 4"):
        best_of_n(rewards, goals, 5)
