"""Adam with its state as named tensors, so that a checkpoint needs no pickle."""

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)  # of the autoencoder and the priors, which learn faster than with PyTorch's
DEFAULT_BETAS = (0.9, 0.999)  # PyTorch's, which checkpoints that record none were made with


def build_optimiser(
    module: nn.Module, rate_factors: dict[nn.Parameter, float], betas: tuple[float, float] = DEFAULT_BETAS
) -> torch.optim.Adam:
    """Fused Adam over the parameters that require a gradient.

    Args:
        module: on its device.
        rate_factors: what the learning rate is multiplied by, for the parameters where that is not 1.
        betas: decay of the moving averages of the gradient and of its square.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            groups.setdefault(rate_factors.get(p, 1.0), []).append(p)
    parameters = [{"params": ps, "rate_factor": factor} for factor, ps in groups.items()]
    return torch.optim.Adam(parameters, betas=betas, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next update."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]


def skip_where(optimiser: torch.optim.Optimizer, skip: Tensor) -> None:
    """Leave the next update out where `skip` (bool scalar on the device) is true, without waiting for the device.

    PyTorch's fused steps read `found_inf` for its gradient scaler, which no public call sets without a scaler.
    """
    optimiser.found_inf = skip.float()


def optimiser_state(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The state of each parameter as NAME.KEY, and the betas."""
    names = {p: name for name, p in module.named_parameters()}
    state = {f"{names[p]}.{key}": value for p, state in optimiser.state.items() for key, value in state.items()}
    return {**state, "betas": torch.tensor(optimiser.param_groups[0]["betas"], dtype=torch.float64)}


def load_optimiser_state(optimiser: torch.optim.Optimizer, module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Take up `optimiser_state` again, with the betas it was made with.

    Each tensor gets its parameter's device and memory layout, which the fused step relies on.
    """
    betas = tuple(saved["betas"].tolist()) if "betas" in saved else DEFAULT_BETAS
    for group in optimiser.param_groups:
        group["betas"] = betas
    parameters = dict(module.named_parameters())
    for full_name, value in saved.items():
        if full_name == "betas":
            continue
        name, key = full_name.rsplit(".", 1)
        parameter = parameters[name]
        like = parameter.detach() if value.shape == parameter.shape else value.to(parameter.device)
        optimiser.state[parameter][key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
