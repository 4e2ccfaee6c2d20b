"""Train a level's prior and a single masked stack with the same number of parameters on the codes of a run.

    python tests/by_hand/compare_priors.py --config configs/photos256.yaml --level top --seeds 2

Both use the same codes, batches, steps, learning rates and weight averaging. Prints the held-out NLL of both in
nats per code. The single stack is PixelCNN's (Oord et al. 2016, "Pixel Recurrent Neural Networks") with the gates,
normalization, conditioning and attention of this package. Without attention it has PixelCNN's blind spot.
"""

import json
import tempfile
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae2.autoencoder.artefact import load_autoencoder
from vqvae2.codes.extraction import open_codes
from vqvae2.codes.loading import load_code_batches
from vqvae2.config import Config, PriorConfig, as_dict
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.likelihood import nats_per_code
from vqvae2.prior.objective import PriorObjective
from vqvae2.prior.prior import Prior
from vqvae2.run.command_line import parse_config, run
from vqvae2.run.directory import codes_path
from vqvae2.run.launch import start_accelerator
from vqvae2.training.loop import train
from vqvae2.training.order import StepOrder


class MaskedLayer(nn.Module):
    """Gated residual block with one masked convolution.

    It sees the rows above and the positions to the left in the same row.
    """

    def __init__(self, config: PriorConfig, residual_channels: int, first: bool, conditioned: bool):
        super().__init__()
        channels, kernel_size = config.hidden_channels, config.kernel_size
        self.reach = kernel_size // 2
        self.first = first
        self.norm = nn.Identity() if first else nn.LayerNorm(channels)
        self.convolution = nn.Conv2d(channels, 2 * residual_channels, (self.reach + 1, kernel_size))
        seen = self.reach + (not first)  # columns of the kernel's last row
        self.masked = kernel_size - seen
        mask = torch.ones(self.reach + 1, kernel_size)
        mask[-1, seen:] = 0
        self.register_buffer("mask", mask)
        self.condition = nn.Linear(channels, 2 * residual_channels, bias=False) if conditioned else None
        self.out = nn.Linear(residual_channels, channels, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, vertical: Tensor, horizontal: Tensor, codes: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Apply the block to the horizontal stack; same interface as GatedLayer. The vertical stack is unchanged."""
        source = rearrange(codes if self.first else self.norm(horizontal), "b h w c -> b c h w")
        x = F.pad(source, (self.reach, self.reach, self.reach, 0))
        x = F.conv2d(x, self.convolution.weight * self.mask, self.convolution.bias)
        x = rearrange(x, "b c h w -> b h w c")
        if self.condition is not None:
            x = x + self.condition(condition)
        return vertical, horizontal + self.dropout(self.out(F.glu(x)))


def count_used(prior: Prior) -> int:
    """Number of parameters that are not masked."""
    masked = sum(x.masked * x.convolution.out_channels * x.convolution.in_channels for x in prior.layers)
    return sum(p.numel() for p in prior.parameters()) - masked


def masked_stack(prior: Prior) -> Prior:
    """Return a copy of the prior's architecture in which a single masked stack replaces the two stacks.

    Its width is the one whose number of unmasked parameters is closest to the number of parameters of `prior`.
    """
    config, conditioned = prior.config, prior.layers[0].condition is not None
    wanted = sum(p.numel() for p in prior.parameters())

    def of_width(residual_channels: int) -> Prior:
        other = build_prior(config, [*prior.coarser, prior.grid], prior.grid.name, prior.num_classes, seed=0)
        layers = [MaskedLayer(config, residual_channels, i == 0, conditioned) for i in range(config.layers)]
        for layer in layers:
            layer.out.weight.data.mul_(len(layers) ** -0.5)
        other.layers = nn.ModuleList(layers)
        return other.to(memory_format=torch.channels_last)

    with torch.device("meta"):
        widths = range(config.residual_channels, 3 * config.residual_channels, 2)
        best = min(widths, key=lambda width: abs(count_used(of_width(width)) - wanted))
    return of_width(best)


def held_out_nats(config: Config, level: str, seed: int, single: bool, directory: Path) -> float:
    """Train one prior and return the NLL of its last validation in nats per code."""
    settings = config.priors[level].train
    trained = load_autoencoder(config.run_dir)
    accelerator = start_accelerator(level, settings.mixed_precision)
    codes, held_out = (
        open_codes(codes_path(config.run_dir, split), trained.sha256, trained.path) for split in ("train", "validation")
    )
    prior = build_prior(config.priors[level], trained.grids, level, len(trained.classes), seed)
    if single:
        torch.manual_seed(seed)
        prior = masked_stack(prior)
    prior.start_from(trained.module.codebooks())
    prior.to(accelerator.device)
    used = count_used(prior) if single else sum(p.numel() for p in prior.parameters())
    print(f"{'single masked stack' if single else 'two stacks'}, seed {seed}: {used:,} weights", flush=True)

    def batches(first_step: int):
        return load_code_batches(codes, StepOrder(len(codes), settings.batch_size, seed, first_step, 1, 0, 1))

    def validate(step: int) -> dict[str, float]:
        return {"nats_per_code": nats_per_code(prior, held_out, settings.batch_size, accelerator)}

    objective = PriorObjective(prior, settings.batch_size, seed)
    train(objective, batches, validate, settings, directory, seed, accelerator, as_dict(settings))
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["nats_per_code"] for line in lines if line["split"] == "validation"][-1]


def main() -> None:
    config, options = parse_config(
        description=__doc__, level=(str, "top", "whose prior is trained"), seeds=(int, 2, "runs of each kind")
    )
    nats: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(options["seeds"]):
        for single, values in nats.items():
            with tempfile.TemporaryDirectory() as directory:
                values.append(held_out_nats(config, options["level"], seed, single, Path(directory)))
            print(f"{'single masked stack' if single else 'two stacks'}, seed {seed}: {values[-1]:.4f} nats per code")
    for single, values in nats.items():
        print(f"{'single masked stack' if single else 'two stacks'}, mean: {mean(values):.4f} nats per code")


if __name__ == "__main__":
    run(main)
