"""Networks with a memory: the simple recurrent network, the LSTM and the GRU as language models.

Used by the chapter *A memory*, which writes the cells by hand and shows that they equal `torch.nn`. The simple network
follows Elman (1990) and Mikolov et al. (2010), the LSTM Hochreiter & Schmidhuber (1997) and Gers et al. (2000), the GRU
Cho et al. (2014) in PyTorch's form: z keeps the old state, and r acts after the product with the matrix.

Not here: training (`training.py`), scoring and sampling (`neural.py`, `sampling.py`).
Shapes: B texts, T tokens, C = n_embd, H = n_hidden, V = vocab_size.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers, and an output layer that shares the weights of the embedding (Press & Wolf 2017).

    Args:
        vocab_size: V. n_embd: C. n_hidden: H, the size of the memory. n_layer: layers on top of each other.
        cell: "rnn", "lstm" or "gru".

    Raises:
        ValueError: `cell` is none of these.
    """

    def __init__(self, vocab_size: int, n_embd: int, n_hidden: int, n_layer: int = 1, cell: str = "lstm") -> None:
        if cell not in CELLS:
            raise ValueError(f"cell: {cell!r}; allowed: {', '.join(CELLS)}")
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.recurrent = CELLS[cell](n_embd, n_hidden, n_layer, batch_first=True)
        self.project = nn.Linear(n_hidden, n_embd, bias=False)  # from the memory back to the space of the tokens
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.embedding.weight, std=0.02)
        if cell == "lstm":  # remember by default: a forget gate that starts near 1 (Jozefowicz et al. 2015)
            for layer in range(n_layer):
                getattr(self.recurrent, f"bias_ih_l{layer}").data[n_hidden : 2 * n_hidden] = 1.0

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> logits (B, T, V) for the token after each position, from an empty memory."""
        return self.step(idx, None)[0]

    def step(self, idx: torch.Tensor, state: Any | None = None) -> tuple[torch.Tensor, Any]:
        """Logits (B, T, V) of new tokens, and the memory after them; `state` None: an empty memory."""
        with torch.autocast(idx.device.type, enabled=False):  # not every CPU has these layers in bfloat16
            out, state = self.recurrent(self.embedding(idx), state)  # (B, T, H)
        return self.logits(out), state

    def logits(self, out: torch.Tensor) -> torch.Tensor:
        """What is shown (..., H) -> logits (..., V)."""
        return F.linear(self.project(out), self.embedding.weight, self.bias)


def gradient_reach(net: RecurrentLM, windows: torch.Tensor) -> torch.Tensor:
    """How strongly the inputs before a prediction act on its loss, by distance (Pascanu et al. 2013): shape (T,).

    Entry k is the length of d loss / d x_(T-k), in nats per unit of the embedding, the mean over all windows. The loss
    is that of the last token of each window (B, T + 1), predicted from an empty memory and the T tokens before it.
    """
    x = net.embedding(windows[:, :-1]).detach().requires_grad_()  # (B, T, C)
    loss = F.cross_entropy(net.logits(net.recurrent(x)[0][:, -1]), windows[:, -1], reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)  # the windows do not mix, so each has its own gradient in the sum
    return gradient.norm(dim=-1).mean(0).flip(0)


def cost_with_context(net: nn.Module, windows: torch.Tensor, n_tokens: int) -> float:
    """Mean cost in nats of the last token of each window (B, T + 1) when only `n_tokens` tokens before it are read.

    Raises:
        ValueError: `n_tokens` is not in 1..T.
    """
    if not 1 <= n_tokens < windows.shape[1]:
        raise ValueError(f"n_tokens: {n_tokens}; allowed: 1 to T = {windows.shape[1] - 1}")
    with torch.inference_mode():
        # in parts, and a copy of what is needed: the logits of all positions together may not fit in memory
        parts = [net(part[:, -n_tokens - 1 : -1])[:, -1].clone() for part in windows.split(100)]
        return F.cross_entropy(torch.cat(parts), windows[:, -1]).item()


def lstm_gates(net: RecurrentLM, idx: torch.Tensor) -> dict[str, torch.Tensor]:
    """What happens inside the first layer of an LSTM while it reads idx (T,): each value (T, H).

    "input", "forget" and "output" are the gates (0 closed, 1 open), "cell" the memory, "hidden" what it shows. The
    slow form, one position at a time, of what `torch.nn.LSTM` does in one call.

    Raises:
        ValueError: the network is no LSTM.
    """
    if not isinstance(net.recurrent, nn.LSTM):
        raise ValueError(f"net: its cell is {type(net.recurrent).__name__}; allowed: LSTM, which has these gates")
    lstm = net.recurrent
    h = c = torch.zeros(lstm.hidden_size, device=idx.device)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in ("input", "forget", "output", "cell", "hidden")}
    with torch.inference_mode():
        for x in net.embedding(idx):  # (C,)
            z = F.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0) + F.linear(h, lstm.weight_hh_l0, lstm.bias_hh_l0)
            i, f, g, o = z.chunk(4)  # (H,) each, in the order of torch.nn.LSTM
            i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
            c = f * c + i * g.tanh()
            h = o * c.tanh()
            for name, value in zip(seen, (i, f, o, c, h), strict=True):
                seen[name].append(value)
    return {name: torch.stack(values) for name, values in seen.items()}
