"""The mode switch: who wins, what is refused, which path runs, and what the package exports."""

import inspect

import pytest
import torch

import kernels
from kernels import dispatch
from kernels.ops.affinity import reference as affinity
from kernels.ops.erasing import eager as eager_erasing
from kernels.ops.erasing import reference as erasing
from kernels.ops.pyramid import reference as pyramid
from kernels.ops.segmentation import reference as segmentation
from kernels.ops.transfer import reference as transfer

REFERENCES = {
    "foreground": erasing, "erase": erasing, "transfer_loss": transfer, "align_loss": transfer,
    "seg_loss": segmentation, "seg_counts": segmentation, "par": affinity, "pyramid_gate": pyramid,
}  # fmt: skip


@pytest.fixture(autouse=True)
def automatic(monkeypatch):
    """Every test starts, and leaves the process, in `auto`."""
    monkeypatch.delenv("KTSE_KERNELS", raising=False)
    kernels.set_mode("auto")
    yield
    kernels.set_mode("auto")


def test_the_mode_is_automatic_until_chosen():
    assert kernels.mode() == "auto"


def test_the_chosen_mode_is_in_force():
    kernels.set_mode("reference")
    assert kernels.mode() == "reference"


def test_the_environment_wins_over_the_chosen_mode(monkeypatch):
    monkeypatch.setenv("KTSE_KERNELS", "reference")
    kernels.set_mode("auto")
    assert kernels.mode() == "reference"


@pytest.mark.parametrize("name", ["cuda", "fast", ""])
def test_an_unknown_mode_is_refused_with_the_allowed_ones(name):
    with pytest.raises(ValueError, match=r"kernels\.mode: '.*' is not a mode \(allowed: auto, reference, triton\)"):
        kernels.set_mode(name)


def test_an_unknown_mode_in_the_environment_is_refused_by_its_name(monkeypatch):
    monkeypatch.setenv("KTSE_KERNELS", "cuda")
    with pytest.raises(ValueError, match="KTSE_KERNELS: 'cuda' is not a mode"):
        kernels.mode()


def test_a_refused_mode_leaves_the_old_one_in_force():
    kernels.set_mode("reference")
    with pytest.raises(ValueError, match="cuda"):
        kernels.set_mode("cuda")
    assert kernels.mode() == "reference"


def test_the_reference_mode_runs_the_reference(monkeypatch):
    monkeypatch.setattr(erasing, "foreground", lambda *_: "the reference ran")
    kernels.set_mode("reference")
    assert kernels.foreground(torch.zeros(1, 1, 1, 1), torch.ones(1, 1)) == "the reference ran"


def test_the_triton_mode_runs_the_kernels_alone(monkeypatch):
    monkeypatch.setattr(erasing, "foreground", None)
    monkeypatch.setattr(eager_erasing, "foreground", None)
    monkeypatch.setenv("KTSE_KERNELS", "triton")
    assert kernels.foreground(torch.zeros(1, 1, 1, 1), torch.ones(1, 1)).shape == (1, 1, 1, 1)


def test_the_triton_mode_refuses_cpu_tensors_outside_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    kernels.set_mode("triton")
    with pytest.raises(ValueError, match="'triton' got CPU tensors; it needs a CUDA device, or TRITON_INTERPRET=1"):
        kernels.foreground(torch.zeros(1, 1, 1, 1), torch.ones(1, 1))


def test_the_triton_mode_is_refused_where_triton_is_not_installed(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with pytest.raises(ValueError, match=r"kernels\.mode: 'triton' needs the package triton, not installed here"):
        kernels.set_mode("triton")


def test_the_automatic_mode_runs_the_fast_path_on_cpu_tensors(monkeypatch):
    monkeypatch.setattr(erasing, "foreground", None)
    assert kernels.foreground(torch.zeros(1, 1, 1, 1), torch.ones(1, 1)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_public_function_has_the_signature_of_its_reference_and_a_docstring(name):
    public = getattr(kernels, name)
    assert public.__doc__ and inspect.signature(public) == inspect.signature(getattr(REFERENCES[name], name))


def test_exactly_the_functions_of_the_contract_are_public():
    assert set(kernels.__all__) == {*REFERENCES, "mode", "set_mode"}
