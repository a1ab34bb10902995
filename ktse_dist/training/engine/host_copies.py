"""CPU copies of tensors, in memory of their own."""

import torch
from torch import Tensor


def fresh_copy(_name: str, tensor: Tensor) -> Tensor:
    """Contiguous, in new memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


class HostCopies:
    """The same in memory that is kept: a name's next copy overwrites the one before it.

    New memory is handed out page by page, which takes longer than the copy itself. Copies have the memory format of
    their originals, as changing that takes four times as long; from a GPU they go to pinned memory.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if name not in self._kept:
            self._kept[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return self._kept[name].copy_(tensor)
