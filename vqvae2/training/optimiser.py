"""Adam and Muon, with their state as named tensors, so that checkpoints need no pickle."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqvae2.training.muon import MuonAdam
from vqvae2.training.sharding import WHOLE, Shard

BETAS = (0.9, 0.95)  # autoencoder and priors: they learn faster than with PyTorch's default
DEFAULT_BETAS = (0.9, 0.999)  # PyTorch's default, used for checkpoints that record no betas


def build_optimiser(
    module: nn.Module,
    rate_factors: dict[nn.Parameter, float],
    betas: tuple[float, float] = DEFAULT_BETAS,
    matrices: Mapping[nn.Parameter, int] | None = None,
    shard: Shard = WHOLE,
    weight_decay: float = 0.0,
    dtype: torch.dtype | None = None,
) -> MuonAdam:
    """Fused Adam over the parameters that require a gradient, and Muon over `matrices`.

    Args:
        module: the module to train, already on its device.
        rate_factors: learning rate multipliers, for the parameters whose multiplier is not 1; not for `matrices`.
        betas: decay of Adam's moving averages of the gradient and of its square.
        matrices: weights of linear and convolution layers that Muon updates, and the number of matrices that the
            outputs of each are divided into; None: none.
        shard: the parameters that this process updates.
        weight_decay: share of themselves, times the learning rate, by which `matrices` shrink in each step.
        dtype: dtype of Muon's matrix products; None: that of the weights.
    """
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad and shard.owns(name):
            parts = (matrices or {}).get(p, 0)
            groups.setdefault((1.0 if parts else rate_factors.get(p, 1.0), parts), []).append(p)
    owned = groups or {(1.0, 0): []}  # with more processes than parameters, some have none
    parameters = [
        {
            "params": ps,
            "rate_factor": factor,
            "matrices": parts,
            "weight_decay": weight_decay if parts else 0.0,
            "dtype": dtype,
        }
        for (factor, parts), ps in owned.items()
    ]
    return MuonAdam(parameters, betas=betas, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next update to `rate` times each group's rate factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]


def skip_where(optimiser: torch.optim.Optimizer, skip: Tensor) -> None:
    """Skip the next update if `skip` (bool scalar on the device) is true, without synchronizing with the device.

    PyTorch's fused optimizers skip an update if their attribute `found_inf` is nonzero. The attribute is intended for
    the gradient scaler, and there is no public way to set it without one.
    """
    optimiser.found_inf = skip.float()  # type: ignore[attr-defined]  # not declared by PyTorch, see above


def optimiser_state(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer state of each parameter, keyed by NAME.KEY, and Adam's betas."""
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    state = {f"{names[p]}.{key}": value for p, state in optimiser.state.items() for key, value in state.items()}
    return {**state, "betas": torch.tensor(optimiser.param_groups[0]["betas"], dtype=torch.float64)}


def load_optimiser_state(optimiser: torch.optim.Optimizer, module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Load what `optimiser_state` returned, including the betas; state of parameters of other processes is left out.

    Each tensor gets the device and memory layout of its parameter, which the fused step requires.
    """
    betas = tuple(saved["betas"].tolist()) if "betas" in saved else DEFAULT_BETAS
    for group in optimiser.param_groups:
        group["betas"] = betas
    owned = {id(p) for group in optimiser.param_groups for p in group["params"]}
    parameters = dict(module.named_parameters())
    for full_name, value in saved.items():
        if full_name == "betas":
            continue
        name, key = full_name.rsplit(".", 1)
        parameter = parameters[name]
        if id(parameter) not in owned:
            continue
        like = parameter.detach() if value.shape == parameter.shape else value.to(parameter.device)
        optimiser.state[parameter][key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
