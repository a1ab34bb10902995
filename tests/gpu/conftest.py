"""Tests of a GPU, which `make test-gpu` runs alone: elsewhere the tests hide GPUs and interpret kernels on the CPU."""

import os

import pytest
import torch

HERE = os.path.dirname(__file__)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if str(item.path).startswith(HERE):
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and `make test-gpu`"))


@pytest.fixture(autouse=True, scope="session")
def fp32_is_fp32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
