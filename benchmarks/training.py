"""This book's training loop beside a plain PyTorch loop and the `Trainer` of the library `transformers`.

All three train the same network from the same weights on the same windows, at the same learning rates, with AdamW,
clipping and float32; their losses must agree. `Trainer` logs, saves and evaluates nothing, and gets the fused AdamW
that this book uses; the plain loop has PyTorch's AdamW as it is. Three shapes: one so small that the loop itself is
most of a step, nanoGPT's for a CPU, and that of the book's small Transformer. The last row is what users of the library
have in place of all this: its GPT-2, trained by its `Trainer`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from benchmarks.timing import in_turn
from benchmarks.transformer import NANOGPT, Logits, copy_weights, our_gpt2, plain_loop, windows_of
from lmsurvey_code.corpus import load_corpus, texts
from lmsurvey_code.recipes import TRANSFORMER_TRAINING, small_tokenizer, small_transformer
from lmsurvey_code.tokenizers import CharTokenizer
from lmsurvey_code.training import TrainConfig, join_documents, set_seed, train
from lmsurvey_code.transformer import Transformer, TransformerConfig

SMALL = {"n_steps": 1000, "batch_size": 4, "block_size": 32}  # of the smallest shape
ADAMW = {"betas": (0.9, 0.95), "eps": 1e-10}


class WithLoss(nn.Module):
    """A network with the interface that Trainer expects; it keeps its losses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.losses: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = F.cross_entropy(self.net(input_ids).flatten(0, 1), labels.flatten())
        self.losses.append(loss.detach())
        return {"loss": loss}


class Windows(torch.utils.data.Dataset):
    """The windows of all steps, one after the other."""

    def __init__(self, data: torch.Tensor, config: TrainConfig) -> None:
        x, y = zip(*windows_of(data, config), strict=True)
        self.x, self.y = torch.cat(x), torch.cat(y)

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return {"input_ids": self.x[indices], "labels": self.y[indices]}


class InOrder(Trainer):
    """Trainer that reads the windows in the order of the steps; a batch comes as one piece."""

    def _get_train_sampler(self, *args: object) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer_losses(net: nn.Module, data: torch.Tensor, config: TrainConfig) -> list[float]:
    """Train with transformers' Trainer in its leanest settings; nats per token at each step."""
    model = WithLoss(net)
    optimizer = torch.optim.AdamW(
        net.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True, **ADAMW
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.learning_rate_factor)
    with tempfile.TemporaryDirectory() as folder:
        nothing = dict.fromkeys(("logging_strategy", "save_strategy", "eval_strategy", "report_to"), "no")
        arguments = TrainingArguments(
            folder,
            max_steps=config.n_steps,
            per_device_train_batch_size=config.batch_size,
            max_grad_norm=config.grad_clip,
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            **nothing | {"report_to": "none"},
        )
        InOrder(
            model,
            arguments,
            data_collator=lambda batch: batch,
            train_dataset=Windows(data, config),
            optimizers=(optimizer, schedule),
        ).train()
    return [loss.item() for loss in model.losses]


def speed(
    name: str, make_net: Callable[[], nn.Module], data: torch.Tensor, config: TrainConfig
) -> list[dict[str, str | float]]:
    """Tokens per second of the three loops, which give the same losses."""
    set_seed(0)
    start = {key: tensor.clone() for key, tensor in make_net().state_dict().items()}
    found: dict[str, list[float]] = {}

    def net() -> nn.Module:
        made = make_net()
        made.load_state_dict(start)
        return made

    def plainly() -> list[float]:
        trained = net()
        adamw = torch.optim.AdamW(trained.parameters(), config.learning_rate, weight_decay=config.weight_decay, **ADAMW)
        rate = config.learning_rate
        return plain_loop(
            trained, windows_of(data, config), adamw, lambda step: rate * config.learning_rate_factor(step)
        )

    seconds = in_turn(
        lambda: found.update(ours=train(net(), data, config).losses),
        lambda: found.update(plain=plainly()),
        lambda: found.update(trainer=trainer_losses(net(), data, config)),
    )
    for who in ("plain", "trainer"):
        np.testing.assert_allclose(found["ours"], found[who], atol=0.01)
    own, plain, theirs = (config.n_steps * config.batch_size * config.block_size / s for s in seconds)
    row = {"unit": "tokens/s", "ours": own}
    return [
        {"name": f"training loop, {name}, float32"}
        | row
        | {"peer": plain, "peer_name": f"plain PyTorch {torch.__version__} loop"},
        {"name": f"training loop, {name}, float32, beside Trainer"}
        | row
        | {"peer": theirs, "peer_name": f"Trainer of transformers {transformers.__version__}"},
    ]


def speed_of_both(data: torch.Tensor, vocab_size: int, config: TrainConfig) -> dict[str, str | float]:
    """Tokens per second of our network in our loop, and of the library's GPT-2 with the same weights in its Trainer."""
    set_seed(0)
    peer, found = Logits(vocab_size), {}
    start = {key: tensor.clone() for key, tensor in peer.state_dict().items()}

    def ours() -> None:
        peer.load_state_dict(start)
        net = our_gpt2(vocab_size)
        copy_weights(net, peer.gpt2)
        found["ours"] = train(net, data, config).losses

    def theirs() -> None:
        peer.load_state_dict(start)
        found["theirs"] = trainer_losses(peer, data, config)

    seconds = in_turn(ours, theirs)
    np.testing.assert_allclose(found["ours"], found["theirs"], atol=0.01)
    own, other = (config.n_steps * config.batch_size * config.block_size / s for s in seconds)
    return {
        "name": "training loop and network, nanoGPT's CPU shape, float32",
        **{"unit": "tokens/s", "ours": own, "peer": other},
        "peer_name": f"GPT-2 and Trainer of transformers {transformers.__version__}",
    }


def rows() -> list[dict[str, str | float]]:
    """One row for each shape and peer."""
    train_texts = texts(load_corpus().train)
    characters = CharTokenizer(train_texts)
    data = torch.as_tensor(join_documents(characters, train_texts))
    tokens = torch.as_tensor(join_documents(small_tokenizer(), train_texts))
    tiny = TransformerConfig(characters.vocab_size, 32, n_layer=1, n_head=2, n_embd=32)
    nanogpt = replace(NANOGPT, n_steps=200)
    ours = replace(
        TRANSFORMER_TRAINING, n_steps=60, optimizer="adamw", learning_rate=3e-3, warmup=20, precision="float32"
    )
    return [
        *speed("1 layer of width 32", lambda: Transformer(tiny), data, replace(NANOGPT, **SMALL)),
        *speed("nanoGPT's CPU shape", lambda: our_gpt2(characters.vocab_size), data, nanogpt),
        *speed("the book's small Transformer", small_transformer, tokens, ours),
        speed_of_both(data, characters.vocab_size, nanogpt),
    ]
