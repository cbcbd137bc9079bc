"""The neural probabilistic language model of Bengio et al. (2003): the last few tokens, as vectors, predict the next.

Used by the chapter *Words as vectors*. The paper's optional direct connections from the vectors to the output are left
out, and the output layer shares the weights of the embedding (Press & Wolf 2017), as in the book's other networks.

Not here: training (`training.py`), scoring and sampling (`neural.py`, `sampling.py`).
Shapes: B texts, T tokens, C = n_embd, H = n_hidden, V = vocab_size, n = order.
"""

import torch
from torch import nn
from torch.nn import functional as F


class FeedForwardLM(nn.Module):
    """Embeddings of the last n - 1 tokens side by side, a tanh layer, an output layer.

    Args:
        vocab_size: V. n_embd: C. n_hidden: H. order: n, as in n-gram; the context is n - 1 tokens.
        start_token: what stands before the first token of a text.

    Raises:
        ValueError: `order` is below 2.
    """

    def __init__(self, vocab_size: int, n_embd: int, n_hidden: int, order: int, start_token: int = 0) -> None:
        if order < 2:
            raise ValueError(f"order: {order}; allowed: 2 or more, so that there is a context")
        super().__init__()
        self.order, self.start_token = order, start_token
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.hidden = nn.Linear((order - 1) * n_embd, n_hidden)
        self.project = nn.Linear(n_hidden, n_embd, bias=False)  # back to the space of the tokens
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> logits (B, T, V) for the token after each position; earlier tokens are start tokens."""
        return self.step(idx, None)[0]

    def step(self, idx: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, T, V) of new tokens, and all that is kept of the text: its last n - 2 tokens (B, n - 2)."""
        B, T = idx.shape
        if state is None:
            state = idx.new_full((B, self.order - 2), self.start_token)
        idx = torch.cat([state, idx], 1)  # (B, n - 2 + T)
        vectors = self.embedding(idx)  # (B, n - 2 + T, C)
        x = torch.cat([vectors[:, i : i + T] for i in range(self.order - 1)], 2)  # (B, T, (n - 1) C), oldest first
        h = torch.tanh(self.hidden(x))  # (B, T, H)
        return F.linear(self.project(h), self.embedding.weight, self.bias), idx[:, T:]
