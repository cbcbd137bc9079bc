"""Alignment: pairs of answers, a reward model, and three ways to make a model prefer: PPO, GRPO and DPO.

Used by the chapter *Alignment*, by its recorded results, and by chapters with rewards of other kinds. A reward model
and PPO with a price on leaving the reference follow Ouyang et al. (2022), GRPO Shao et al. (2024), DPO Rafailov et al.
(2023). The losses of DPO and GRPO equal those of trl.

    reward = RewardModel(adapted(model, add_lora))
    fit_reward(reward, load_pairs("train"), config)
    reinforce(adapted(model, add_lora), model, questions, reward.score, config, RLConfig("grpo"))

Not here: the LLM (`llm.py`), LoRA (`parameter_efficient.py`), how a question is put (`adaptation.prompt_of`).
Shapes: B answers, T tokens, V = vocab_size, C = n_embd, P questions, G answers to each.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lmsurvey_code.adaptation import holds_answer, load_instructions, prompt_of
from lmsurvey_code.llm import LLM, most_likely, write_many
from lmsurvey_code.neural import NeuralLM
from lmsurvey_code.parameter_efficient import adapted, add_lora, load_learned, merge_lora
from lmsurvey_code.training import TrainConfig, bfloat16_is_fast, make_optimizers, progress
from lmsurvey_code.transformer import Transformer

REFUSAL = re.compile(
    r"\b(sorry|can't|cannot|can not|won't|will not|unable to|not able to|do not know|don't know|must decline)\b", re.I
)
DATA = Path(__file__).parent / "data"
LONGEST = 8  # words of an answer where one word was asked for

Reward = Callable[[Sequence[str], Sequence[str]], Any]  # questions and answers, B each -> B numbers


# ---- preferences ----


@dataclass(frozen=True)
class Pair:
    """A question, an answer that is preferred, and one that is not."""

    kind: str  # what is wrong with the one that is not preferred: see `tools/make_preferences.py`
    source: str  # "rule" or "written"
    part: str  # "train" or "test"
    question: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Request:
    """What deserves a refusal ("improper"), or only sounds as if ("safe"), and a good answer to it."""

    kind: str
    question: str
    answer: str


def _table(name: str) -> list[list[str]]:
    _, *lines = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [[cell.replace("\\n", "\n") for cell in line.split("\t")] for line in lines]


@cache
def load_pairs(part: str) -> tuple[Pair, ...]:
    """The pairs of "train", in random order, or of "test", whose questions are others.

    Raises:
        ValueError: `part` is neither.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part: {part!r}; allowed: 'train', 'test'")
    pairs = [pair for pair in (Pair(*row) for row in _table("preferences.tsv")) if pair.part == part]
    return tuple(pairs[i] for i in np.random.default_rng(0).permutation(len(pairs)))


@cache
def load_requests() -> tuple[Request, ...]:
    """The 110 requests: half of them deserve a refusal, and half only sound so."""
    return tuple(Request(*row) for row in _table("requests.tsv"))


def is_refusal(text: str) -> bool:
    """Whether an answer says that it will not, cannot or does not know, by its words.

    >>> is_refusal("I'm sorry, but I can't help with that.")
    True
    """
    return REFUSAL.search(text.replace("\u2019", "'")) is not None


@cache
def _known() -> dict[str, Any]:
    return {item.question: item for item in (*load_instructions(), *load_requests())}


def judged_questions(part: str) -> list[str]:
    """The questions of the pairs of "train" or "test" that `is_good` knows."""
    return [pair.question for pair in load_pairs(part) if pair.kind not in ("fitting", "whole", "honest")]


def is_good(question: str, answer: str) -> bool:
    """The goal that no reward model sees, by rule.

    Of an instruction with one right answer: it stands in at most LONGEST words, and nothing is refused. Of an improper
    request: it is refused. Of a safe one: it is not, and there are three words or more.

    Raises:
        ValueError: `question` is not one of these.
    """
    item, n_words = _known().get(question), len(answer.split())
    if isinstance(item, Request):
        return is_refusal(answer) if item.kind == "improper" else not is_refusal(answer) and n_words >= 3
    if item is None or item.check == "open":
        raise ValueError(f"question: {question!r}; allowed: one of a request, or with one right answer")
    return n_words <= LONGEST and not is_refusal(answer) and holds_answer(item, answer)


# ---- answers as rows of tokens ----


@dataclass(frozen=True)
class Rows:
    """Questions and answers, one a row: start token, question, answer, and start tokens that fill the row."""

    tokens: torch.Tensor  # (B, T)
    counted: torch.Tensor  # (B, T) bool: the tokens of answers

    def __getitem__(self, chosen: Any) -> "Rows":
        """Some of the rows, no wider than they need to be."""
        counted = self.counted[chosen]
        width = int(counted.any(0).nonzero().max()) + 1
        return Rows(self.tokens[chosen, :width], counted[:, :width])

    @property
    def last(self) -> torch.Tensor:
        """Where each answer ends, (B,)."""
        return (self.counted * torch.arange(self.counted.shape[1], device=self.counted.device)).argmax(1)


def rows_of(model: NeuralLM, questions: Sequence[str], answers: Sequence[str | Sequence[int]]) -> Rows:
    """Rows for answers that are texts, which then end with the end token, or tokens, which stay as they are.

    Raises:
        ValueError: there is no answer, one has no token, or there are not as many questions as answers.
    """
    ask, encode = prompt_of(model), model.tokenizer.encode
    end = getattr(model, "end_token", model.start_token)
    if not answers or len(questions) != len(answers):
        raise ValueError(f"answers: {len(answers)} for {len(questions)} questions; allowed: one or more, one for each")
    written = [[*encode(a), end] if isinstance(a, str) else list(a) for a in answers]
    if not all(written):
        raise ValueError(f"answers[{written.index([])}] has no token; allowed: one or more, such as the end token")
    asked = [[model.start_token, *encode(ask(question))] for question in questions]
    shape = (len(asked), max(len(q) + len(a) for q, a in zip(asked, written, strict=True)))
    tokens, counted = torch.full(shape, model.start_token), torch.zeros(shape, dtype=torch.bool)
    for i, (q, a) in enumerate(zip(asked, written, strict=True)):
        tokens[i, : len(q) + len(a)] = torch.tensor(q + a)
        counted[i, len(q) : len(q) + len(a)] = True
    return Rows(tokens.to(model.device), counted.to(model.device))


def log_probs(net: Transformer, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p of each token of an answer after all before it, in nats, and the stream that it was computed from.

    Returns:
        Both for the places before the last one: (B, T - 1), with 0 for tokens of no answer, and (B, T - 1, C).
    """
    hidden = net.hidden(rows.tokens[:, :-1])  # what fills a row stands behind the answer, which does not see it
    counted = rows.counted[:, 1:]
    logits = net.logits(hidden[counted]).float()  # (tokens of answers, V)
    found = -F.cross_entropy(logits, rows.tokens[:, 1:][counted], reduction="none")
    return torch.zeros(counted.shape, device=found.device).masked_scatter(counted, found), hidden


@torch.no_grad()
def reference_log_probs(model: NeuralLM, rows: Rows, n_batch: int = 16) -> torch.Tensor:
    """As `log_probs`, without a gradient and a batch at a time: (B, T - 1)."""
    parts = []
    with _fast(model.device):
        for tokens, counted in zip(rows.tokens.split(n_batch), rows.counted.split(n_batch), strict=True):
            parts.append(log_probs(model.net, Rows(tokens, counted))[0])
    return torch.cat(parts)


def writer(model: LLM) -> LLM:
    """A copy that writes faster: with LoRA merged, and in bfloat16 where the device is fast in it."""
    net = copy.deepcopy(model.net)
    merge_lora(net)
    net = net.to(torch.bfloat16 if bfloat16_is_fast(model.device.type) else torch.float32)
    return LLM(net, model.tokenizer, model.name, model.block_size)


def sample_answers(
    model: LLM, questions: Sequence[str], n: int, max_new_tokens: int = 16, seed: int | None = 0
) -> list[list[int]]:
    """n answers to each question, drawn from the model itself (temperature 1); with seed None, the most likely ones.

    Returns:
        Tokens, with the end token where it was written; the answers to a question stand side by side.
    """
    rng = np.random.default_rng(seed)

    def draw(logits: np.ndarray, tokens: list[int]) -> int:
        total = np.exp(logits - logits.max()).cumsum()
        return int(total.searchsorted(rng.random() * total[-1], side="right"))

    prompts = [prompt for prompt in map(prompt_of(model), questions) for _ in range(n)]
    written = write_many(model, prompts, max_new_tokens, most_likely if seed is None else draw, n_batch=64)
    return [[*found, model.end_token] if len(found) < max_new_tokens else found for found in written]


def texts_of(model: LLM, answers: Sequence[Sequence[int]]) -> list[str]:
    """The text of answers that are tokens, without the end token."""
    return [model.tokenizer.decode([t for t in found if t != model.end_token]).strip() for found in answers]


# ---- losses ----


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(r+ - r-), mean of rewards (B,): the chance that the chosen answer wins (Bradley & Terry 1952)."""
    return -F.logsigmoid(chosen - rejected).mean()


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> torch.Tensor:
    """The same loss, with beta log (p / p_ref) as the reward: log-probabilities of whole answers, (B,) each."""
    return bradley_terry_loss(beta * (chosen - ref_chosen), beta * (rejected - ref_rejected))


def kl_k3(log_p: torch.Tensor, log_ref: torch.Tensor) -> torch.Tensor:
    """For tokens drawn from p: exp(d) - d - 1 with d = log_ref - log_p; never below 0, with mean KL(p, ref)."""
    d = log_ref - log_p
    return d.exp() - d - 1


def clipped_loss(log_p: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip: float) -> torch.Tensor:
    """-min(r A, clip(r) A) of each token, with r = p / p_old (Schulman et al. 2017); shapes broadcast."""
    ratio = (log_p - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """GRPO: rewards (P, G), less the mean of their question and over its deviation."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def gae(rewards: torch.Tensor, values: torch.Tensor, counted: torch.Tensor, lam: float) -> torch.Tensor:
    """Generalized advantage estimates (Schulman et al. 2015) without discount, (B, T) from (B, T) each.

    Each answer's `counted` places stand in one piece, and nothing is worth anything after the last one.
    """
    advantages, last, value_next = torch.zeros_like(rewards), rewards.new_zeros(len(rewards)), 0.0
    for t in reversed(range(rewards.shape[1])):
        last = (rewards[:, t] + value_next - values[:, t] + lam * last) * counted[:, t]
        advantages[:, t], value_next = last, values[:, t] * counted[:, t]
    return advantages


def mean_of_answers(x: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of each answer, then over answers: a token of a long answer counts for less."""
    return ((x * counted).sum(1) / counted.sum(1)).mean()


# ---- learning ----


def _fast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device.type))


def learn(
    net: nn.Module,
    config: TrainConfig,
    batch_at: Callable[[int], Any],
    loss_of: Callable[[Any], torch.Tensor],
    device: torch.device,
) -> list[float]:
    """Change the weights that learn, one step for each batch; gives the losses. bfloat16 where it is fast."""
    optimizers, losses = make_optimizers(net, config), []
    for step in progress(range(config.n_steps), "learning"):
        batch = batch_at(step)
        with _fast(device):
            loss = loss_of(batch)
        loss.backward()
        losses.append(loss.item())
        if config.grad_clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["highest_lr"] * config.learning_rate_factor(step)
            optimizer.step()
            optimizer.zero_grad()
        for p in net.parameters():  # which a fused optimizer leaves out; `NeuralLM` asks whether weights changed
            torch.autograd.graph.increment_version(p)
    return losses


def _in_passes(n: int, config: TrainConfig) -> Callable[[int], torch.Tensor]:
    """Which of n things a step takes, `config.batch_size` of them: all in random order, then all again."""
    n_passes = -(-config.n_steps * config.batch_size // n)
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(n_passes)])
    return lambda step: order[step * config.batch_size : (step + 1) * config.batch_size]


def _zero_head(model: NeuralLM) -> nn.Linear:
    """One number from the stream (..., C), which is 0 at first."""
    head = nn.Linear(model.net.config.n_embd, 1, device=model.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class RewardModel(nn.Module):
    """A language model with one more number: how good an answer is, read off the stream at its end token."""

    def __init__(self, model: NeuralLM) -> None:
        super().__init__()
        self.model, self.net = model, model.net
        self.head = _zero_head(model)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Rewards (B,)."""
        hidden = self.net.hidden(rows.tokens)  # (B, T, C)
        return self.head(hidden[torch.arange(len(hidden)), rows.last]).float()[:, 0]

    @torch.no_grad()
    def score(self, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Rewards (B,) of answers to questions: a `Reward`."""
        rows = rows_of(self.model, questions, answers)
        order = rows.last.argsort()  # rows of about the same length share a batch
        with _fast(self.model.device):
            found = torch.cat([self(rows[some]) for some in order.split(32)])
        return found[order.argsort()].cpu().numpy()


def load_reward(model: LLM) -> RewardModel:
    """The reward model that was fitted for the book on "train": the packaged LLM with LoRA of rank 8, and a head.

    Raises:
        ValueError: `model` is another one.
    """
    reward = RewardModel(adapted(model, add_lora))
    load_learned(reward, DATA / "reward_model.safetensors")
    return reward


def _pair_rows(model: NeuralLM, pairs: Sequence[Pair]) -> Rows:
    """Rows of all chosen answers, and then of all rejected ones: (2 N, T)."""
    questions = [pair.question for pair in pairs] * 2
    return rows_of(model, questions, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])


def fit_reward(reward: RewardModel, pairs: Sequence[Pair], config: TrainConfig) -> list[float]:
    """Teach a reward model to give more to the chosen answers; a step reads `config.batch_size` pairs.

    Afterwards the rewards of the answers in `pairs` have mean 0: the loss knows differences alone.
    """
    rows, n = _pair_rows(reward.model, pairs), len(pairs)
    chosen = _in_passes(n, config)

    def loss_of(some: torch.Tensor) -> torch.Tensor:
        return bradley_terry_loss(*reward(rows[torch.cat([some, some + n])]).chunk(2))

    losses = learn(reward, config, chosen, loss_of, reward.model.device)
    questions, texts = [p.question for p in pairs] * 2, [p.chosen for p in pairs] + [p.rejected for p in pairs]
    with torch.no_grad():
        reward.head.bias -= float(reward.score(questions, texts).mean())
    return losses


def fit_dpo(
    model: NeuralLM, reference: NeuralLM, pairs: Sequence[Pair], config: TrainConfig, beta: float = 0.1
) -> list[float]:
    """DPO: teach a model to prefer the chosen answers by more than `reference` does. Its weights change in place."""
    rows, n = _pair_rows(model, pairs), len(pairs)
    chosen = _in_passes(n, config)

    def batch_at(step: int) -> tuple[Rows, torch.Tensor]:
        some = rows[torch.cat([chosen(step), chosen(step) + n])]
        return some, reference_log_probs(reference, some).sum(1)  # (2 B,)

    def loss_of(batch: tuple[Rows, torch.Tensor]) -> torch.Tensor:
        some, fixed = batch
        return dpo_loss(*log_probs(model.net, some)[0].sum(1).chunk(2), *fixed.chunk(2), beta)

    return learn(model.net, config, batch_at, loss_of, model.device)


@dataclass(frozen=True)
class RLConfig:
    """How to learn from rewards. Raises ValueError where a value is not allowed."""

    method: str = "grpo"  # or "ppo"
    n_samples: int = 8  # G answers to each question
    max_new_tokens: int = 16
    kl_weight: float = 0.05  # price of a nat of KL to the reference: in the loss (GRPO) or in the reward (PPO)
    clip: float = 0.2
    passes: int = 1  # steps on the answers of one draw
    lam: float = 0.95  # of PPO: how far an advantage looks ahead
    value_weight: float = 0.5  # of PPO: how much the loss of the values counts

    def __post_init__(self) -> None:
        if self.method not in ("grpo", "ppo"):
            raise ValueError(f"method: {self.method!r}; allowed: 'grpo', 'ppo'")
        if self.n_samples < 2 or self.passes < 1:
            raise ValueError(f"n_samples, passes: {self.n_samples}, {self.passes}; allowed: 2 and 1 or more")


def reinforce(
    model: LLM, reference: NeuralLM, questions: Sequence[str], reward: Reward, config: TrainConfig, rl: RLConfig
) -> list[dict[str, float]]:
    """Let a model answer, and make what is rewarded more likely. Its weights change in place.

    Args:
        model: what learns, such as `adapted(reference, add_lora)`; it runs on the book's `Transformer`.
        reference: what it must not leave too far.
        questions: to draw from; a draw takes `config.batch_size` of them.
        reward: any function of questions and answers, such as `RewardModel.score`, or a rule.
        config: how many steps, the learning rate and the seed.
        rl: the rest.

    Returns:
        For each draw: mean reward, KL to the reference in nats per answer, tokens per answer, and the mean loss of
        its steps.
    """
    values = _zero_head(model)  # of PPO: what is still to come, from here
    chosen, history, drawn = _in_passes(len(questions), config), [], {}

    def value_of(hidden: torch.Tensor) -> torch.Tensor:
        return values(hidden.detach()).float()[:, :, 0]  # its loss does not change the stream

    def batch_at(step: int) -> dict[str, Any]:
        if step % rl.passes == 0:
            asked = [questions[i] for i in chosen(step // rl.passes).tolist()]
            seed = 1_000_003 * config.seed + step
            found = sample_answers(writer(model), asked, rl.n_samples, rl.max_new_tokens, seed)
            asked = [question for question in asked for _ in range(rl.n_samples)]
            rows = rows_of(model, asked, found)
            rewards = torch.as_tensor(np.asarray(reward(asked, texts_of(model, found))), dtype=torch.float32)
            drawn.update(rows=rows, counted=rows.counted[:, 1:], rewards=rewards.to(model.device))
            drawn["ref"] = reference_log_probs(reference, rows)
            drawn["first"] = True
        return drawn

    def first_look(batch: dict[str, Any], log_p: torch.Tensor, hidden: torch.Tensor) -> None:
        """What stays the same in all passes: the old log-probabilities, and the advantages."""
        log_p, counted, rewards = log_p.detach(), batch["counted"], batch["rewards"]
        kl = (log_p - batch["ref"]) * counted
        if rl.method == "grpo":
            advantages = group_advantages(rewards.view(-1, rl.n_samples)).view(-1, 1).expand_as(log_p)
        else:
            paid = -rl.kl_weight * kl
            paid[torch.arange(len(paid)), batch["rows"].last - 1] += rewards
            old_values = value_of(hidden).detach() * counted
            advantages = gae(paid, old_values, counted, rl.lam)
            batch["returns"] = advantages + old_values
            kept = advantages[counted]
            advantages = (advantages - kept.mean()) / (kept.std() + 1e-8)
        batch.update(old=log_p, advantages=advantages, first=False)
        n_tokens = counted.sum(1).float()
        row = {"reward": rewards.mean(), "kl": kl.sum(1).mean(), "n_tokens": n_tokens.mean()}
        history.append({name: round(float(value), 4) for name, value in row.items()} | {"loss": 0.0})

    def loss_of(batch: dict[str, Any]) -> torch.Tensor:
        log_p, hidden = log_probs(model.net, batch["rows"])
        if batch["first"]:
            first_look(batch, log_p, hidden)
        loss = clipped_loss(log_p, batch["old"], batch["advantages"], rl.clip)
        if rl.method == "grpo":
            loss = mean_of_answers(loss + rl.kl_weight * kl_k3(log_p, batch["ref"]), batch["counted"])
        else:
            off = (value_of(hidden) - batch["returns"]) ** 2
            loss = (loss + rl.value_weight * off)[batch["counted"]].mean()
        history[-1]["loss"] += round(loss.item() / rl.passes, 6)
        return loss

    learn(nn.ModuleList([model.net, values]), config, batch_at, loss_of, model.device)
    return history


# ---- best of n ----


def best_of_n(rewards: Sequence[float], goals: Sequence[float], n: int) -> float:
    """The mean goal of the best of n by reward, over all choices of n of the N recorded answers (no draw needed).

    Raises:
        ValueError: `n` is not 1 to N.
    """
    N = len(rewards)
    if not 1 <= n <= N:
        raise ValueError(f"n: {n}; allowed: 1 to {N}, the answers that there are")
    order = np.argsort(rewards, kind="stable")  # the one at place i is the best of comb(i, n - 1) choices
    return sum(comb(i, n - 1) * goals[j] for i, j in enumerate(order)) / comb(N, n)
