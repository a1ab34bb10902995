"""SGD groups and the learning-rate schedule of the published run (docs/method.md 1.3)."""

from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float = 5e-4) -> list[dict]:
    """The trainable parameters of a module with `backbone` and `head`, as SGD groups (docs/method.md 1.3).

    Each is {"params", "names", "rate", "head", "weight_decay"}: weights have rate 1 and the given decay, biases rate 2
    and none; `head` marks where the head's own multiple applies. A group's learning rate is lr * rate, times that
    multiple for the head (1 in the published run). Empty groups are left out, and so are frozen parameters: the
    published groups list them, but they never get a gradient and never move.
    """
    groups: dict[tuple[bool, bool], dict] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        head, bias = name.startswith("head."), name.rpartition(".")[2] == "bias"
        rate, decay = (2.0, 0.0) if bias else (1.0, weight_decay)
        new = {"params": [], "names": [], "rate": rate, "head": head, "weight_decay": decay}
        group = groups.setdefault((head, bias), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def poly(step: int, horizon: int, power: float = 0.9) -> float:
    """Learning-rate multiple for the update after `step` finished ones: (1 - step / horizon) ** power.

    From `horizon` on it stays at its last value, that of step horizon - 1, as in the published optimiser.
    """
    return (1 - min(step, horizon - 1) / horizon) ** power
