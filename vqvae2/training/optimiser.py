"""Adam with its state as named tensors, so that a checkpoint needs no pickle."""

import torch
from torch import Tensor, nn


def build_optimiser(module: nn.Module, rate_factors: dict[nn.Parameter, float]) -> torch.optim.Adam:
    """Fused Adam over the weights that follow a gradient.

    `rate_factors`: by what the rate is multiplied, where it is not by 1.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            groups.setdefault(rate_factors.get(p, 1.0), []).append(p)
    return torch.optim.Adam([{"params": ps, "rate_factor": factor} for factor, ps in groups.items()], fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next update."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]


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
