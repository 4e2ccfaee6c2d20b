"""Adam with its state as named tensors, so that a checkpoint needs no pickle."""

import torch
from torch import Tensor, nn


def build_optimiser(module: nn.Module) -> torch.optim.Adam:
    """Fused Adam over the weights that follow a gradient; the rate is set each step."""
    return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], fused=True)


def optimiser_state(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The state of each parameter as NAME.KEY."""
    names = {p: name for name, p in module.named_parameters()}
    return {f"{names[p]}.{key}": value for p, state in optimiser.state.items() for key, value in state.items()}


def load_optimiser_state(optimiser: torch.optim.Optimizer, module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Take up `optimiser_state` again.

    Each tensor gets its parameter's device and memory layout, which the fused step relies on.
    """
    parameters = dict(module.named_parameters())
    for full_name, value in saved.items():
        name, key = full_name.rsplit(".", 1)
        parameter = parameters[name]
        like = parameter.detach() if value.shape == parameter.shape else value.to(parameter.device)
        optimiser.state[parameter][key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
