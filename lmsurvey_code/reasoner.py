"""A small network that writes steps: how it is made, how it writes, and how it learns from a rule that checks it.

Used by the chapter *Chain of thought and planning* and its recorded results. It first copies texts of a careless
writer, who tries, often gives up, and sometimes tries again (as in Gandhi et al. 2024). Then GRPO (Shao et al. 2024)
with a reward that a rule gives (DeepSeek-AI 2025): 1 for a solution, 0 for anything else.

The tasks are those of `reasoning.py`. A number is one symbol. A row is a prompt of PROMPT symbols, filled up from the
left, and a text that ends with a line feed. Shapes: N texts, T symbols, V kinds of symbols, P puzzles, G texts to each.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lmsurvey_code.alignment import Rows, clipped_loss, group_advantages, learn, log_probs, mean_of_answers
from lmsurvey_code.files import whole_file
from lmsurvey_code.reasoning import LARGEST, Puzzle, after_step, random_puzzle, random_steps, solves
from lmsurvey_code.training import TrainConfig, set_seed
from lmsurvey_code.transformer import Transformer, TransformerConfig

SYMBOLS = ["\n", ".", *"+-*=,/>:#", *map(str, range(LARGEST + 1))]  # "\n" ends a text, "." fills a prompt
IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}
PROMPT, LONGEST, MOST_ATTEMPTS = 9, 60, 4
CONFIG = TransformerConfig(len(SYMBOLS), PROMPT + LONGEST, n_layer=4, n_head=4, n_embd=128)
PRETRAINING = TrainConfig(700, 128, 1, 3e-3, matrix_learning_rate=0.03, optimizer="muon", decay=0.7)
REWARDED = TrainConfig(160, 16, 1, 3e-4, decay=0.2)
WEIGHTS = Path(__file__).parent / "data" / "reasoner.safetensors"  # after `pretrain`
WEIGHTS_REWARDED = WEIGHTS.with_name("reasoner_rewarded.safetensors")  # and after `grpo`


def read_prompt(prompt: str) -> list[int]:
    """The PROMPT numbers of a prompt's symbols, which spaces part.

    Raises:
        ValueError: there are more, or one is unknown.
    """
    symbols = prompt.split()
    if len(symbols) > PROMPT or not set(symbols) <= set(IDS):
        raise ValueError(f"prompt: {prompt!r}; allowed: at most {PROMPT} symbols of {' '.join(SYMBOLS[1:])}")
    return [IDS[s] for s in ["."] * (PROMPT - len(symbols)) + symbols]


def rows_of(prompts: Sequence[str], texts: Sequence[str]) -> Rows:
    """Rows of prompts and texts, each with its end where there is room: (N, T)."""
    split = [[IDS[s] for s in text.split()] + [IDS["\n"]] for text in texts]
    tokens = torch.zeros(len(prompts), PROMPT + min(LONGEST, max(map(len, split))), dtype=torch.long)
    counted = torch.zeros(tokens.shape, dtype=torch.bool)
    for i, (prompt, ids) in enumerate(zip(prompts, split, strict=True)):
        row = read_prompt(prompt) + ids[:LONGEST]
        tokens[i, : len(row)] = torch.tensor(row)
        counted[i, PROMPT : len(row)] = True
    return Rows(tokens, counted)


@torch.no_grad()
def write(net: Transformer, prompts: Sequence[str], seed: int | None, stop: str = "\n") -> list[str]:
    """A text after each prompt, up to a symbol of `stop`: drawn (temperature 1), or with seed None the most likely."""
    generator, texts = torch.Generator().manual_seed(seed or 0), []
    for first in range(0, len(prompts), 512):
        idx, state = torch.tensor([read_prompt(prompt) for prompt in prompts[first : first + 512]]), None
        written: list[list[str]] = [[] for _ in idx]
        done = [False] * len(idx)
        for _ in range(LONGEST):
            logits, state = net.step(idx, state)
            p = logits[:, -1].float().softmax(1)  # (N, V)
            new = p.argmax(1) if seed is None else torch.multinomial(p, 1, generator=generator)[:, 0]
            for i, token in enumerate(new.tolist()):
                done[i] = done[i] or SYMBOLS[token] in stop
                written[i] += [] if done[i] else [SYMBOLS[token]]
            if all(done):
                break
            idx = new[:, None]
        texts += [" ".join(symbols) for symbols in written]
    return texts


def save(net: Transformer, path: str | Path = WEIGHTS) -> None:
    """Write the weights, two bytes each."""
    with whole_file(path) as partial:
        save_file({name: p.detach().half() for name, p in net.named_parameters()}, partial)


def load(path: str | Path = WEIGHTS) -> Transformer:
    """The network that `save` wrote; by default the one that comes with the book, after `pretrain`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: {path} is missing; allowed: a file of `save`")
    net, found = Transformer(CONFIG), load_file(path)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(found[name])
    return net


def careless(puzzle: Puzzle, rng: np.random.Generator) -> str:
    """A text about a puzzle: attempts, half of them at random; after a wrong one the writer mostly gives up."""
    attempts = []
    while len(attempts) < MOST_ATTEMPTS:
        drawn = random_steps(puzzle.numbers, rng, puzzle.broken) if rng.random() < 0.5 else ""
        attempts.append(drawn or puzzle.solution)
        if solves(puzzle, attempts[-1]) or rng.random() < 0.6:
            break
    return " / ".join(attempts)


def example(rng: np.random.Generator) -> tuple[str, str]:
    """A prompt and a text to learn from: a puzzle, or what is left of one after its first step."""
    while True:
        puzzle = random_puzzle(3 if rng.random() < 0.7 else 4, rng, with_broken=rng.random() < 0.25)
        if rng.random() < 0.3:
            first, _, rest = puzzle.solution.partition(" , ")
            puzzle = Puzzle(after_step(puzzle.numbers, first), puzzle.target, puzzle.broken, rest)
        if not puzzle.held_out:
            return puzzle.prompt, careless(puzzle, rng)


def pretrain(config: TrainConfig) -> tuple[Transformer, list[float]]:
    """A new network that copies `example`s, `config.batch_size` of them in a step; and its losses."""
    set_seed(config.seed)
    net = Transformer(CONFIG)

    def batch_at(step: int) -> Rows:
        rng = np.random.default_rng([config.seed, step // 8])  # of eight batches: rows of about one length together
        some = sorted((example(rng) for _ in range(8 * config.batch_size)), key=lambda pair: pair[1].count(" "))
        first = config.batch_size * int(rng.permutation(8)[step % 8])
        return rows_of(*zip(*some[first : first + config.batch_size], strict=True))

    def loss_of(rows: Rows) -> torch.Tensor:
        return -log_probs(net, rows)[0].sum() / rows.counted.sum()

    return net, learn(net, config, batch_at, loss_of, torch.device("cpu"))


def is_solution(puzzle: Puzzle, text: str) -> float:
    """The reward: 1 for a text whose last attempt is a solution, else 0."""
    return float(solves(puzzle, text))


def grpo(
    net: Transformer,
    config: TrainConfig,
    n_samples: int = 8,
    reward: Callable[[Puzzle, str], float] = is_solution,
    follow: Callable[[int], None] = lambda step: None,
) -> list[dict[str, float]]:
    """GRPO without a reference, on puzzles of three numbers that are not held out. The weights change in place.

    Args:
        net: what learns.
        config: `batch_size` puzzles in a step.
        n_samples: G texts for each puzzle.
        reward: of a text about a puzzle.
        follow: called before each step.

    Returns:
        For each step: mean reward, and symbols of a text.
    """
    history = []

    def batch_at(step: int) -> tuple[Rows, torch.Tensor]:
        follow(step)
        rng = np.random.default_rng([config.seed, step, 1])
        puzzles = [p for p in (random_puzzle(3, rng) for _ in range(config.batch_size)) for _ in range(n_samples)]
        prompts = [puzzle.prompt for puzzle in puzzles]
        texts = write(net, prompts, seed=1_000_003 * config.seed + step)
        rewards = torch.tensor([reward(puzzle, text) for puzzle, text in zip(puzzles, texts, strict=True)])
        history.append(
            {"reward": float(rewards.mean()), "n_symbols": float(np.mean([len(text.split()) for text in texts]))}
        )
        return rows_of(prompts, texts), group_advantages(rewards.view(-1, n_samples)).view(-1, 1)  # (P G, 1)

    def loss_of(batch: tuple[Rows, torch.Tensor]) -> torch.Tensor:
        rows, advantages = batch
        log_p = log_probs(net, rows)[0]
        return mean_of_answers(clipped_loss(log_p, log_p.detach(), advantages, 0.2), rows.counted[:, 1:])

    learn(net, config, batch_at, loss_of, torch.device("cpu"))
    return history
