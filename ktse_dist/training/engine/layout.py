"""The names and shapes that a state must have to fit a network."""

from torch import Size, Tensor, nn

from ktse_dist.errors import UserError


class Layout:
    """Names and shapes of a module's state, taken before any engine cuts its parameters to pieces."""

    def __init__(self, module: nn.Module) -> None:
        self.shapes: dict[str, Size] = {name: tensor.shape for name, tensor in module.state_dict().items()}
        self.trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}

    def check(self, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
        """Raise UserError unless `weights` has exactly this network's tensors and `momentum` some of the trainable."""
        odd = sorted(self.shapes.keys() ^ weights.keys())
        if odd:
            verb = "lacks" if odd[0] in self.shapes else "has"
            raise UserError(
                f"checkpoint: it {verb} '{odd[0]}' ({len(odd)} names differ), so it belongs to another network; "
                "set model.* and data.path as in the run that wrote it"
            )
        foreign = sorted(momentum.keys() - self.trainable.keys())
        if foreign:
            raise UserError(f"checkpoint: it has momentum for '{foreign[0]}', which is not trainable in this network")
        for name, tensor in [*weights.items(), *momentum.items()]:
            if tensor.shape != self.shapes[name]:
                raise UserError(
                    f"checkpoint: '{name}' has shape {list(tensor.shape)}, this network's has "
                    f"{list(self.shapes[name])}; set model.* and data.path as in the run that wrote it"
                )
