"""How much memory tensors take: a counter that follows each from its birth to its end.

Used by the chapters *Training* and *Efficient training and inference*.

Not here: memory that a kernel keeps to itself, and that of anything but PyTorch.
"""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are alive (`now`), and their `peak`.

    >>> with LiveBytes() as live:
    ...     _ = torch.zeros(1000) + 1  # for a moment, there are two of 4,000 bytes
    >>> live.peak, live.now
    (8000, 4000)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.known.update(_storages((args, kwargs)))  # what was there before does not count
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._end, storage.nbytes())
        return result

    def _end(self, n_bytes: int) -> None:
        self.now -= n_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]
