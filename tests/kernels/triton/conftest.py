"""Every kernel test starts from poisoned memory: what a kernel forgets to write shows as NaN or as a huge number."""

import pytest
import torch

empty, empty_like = torch.empty, torch.empty_like


@pytest.fixture(autouse=True, scope="module")
def poisoned():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *size, **options: poison(empty(*size, **options)))
        patch.setattr(torch, "empty_like", lambda *like, **options: poison(empty_like(*like, **options)))
        yield


def poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)
