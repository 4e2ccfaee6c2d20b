"""Train a prior on the codes of a run for a given time and print its held-out nats per code as it learns.

    python -m tests.by_hand.prior_speedrun --config configs/leaves256.yaml --level bottom --seconds 40
    python -m tests.by_hand.prior_speedrun --config configs/leaves256.yaml --level top --priors.top.hidden_channels 96

The number of steps is chosen from the time of the first ones, so that the schedule ends with the given time. Only
training is timed, not validation. The model is that of the configuration and is not written anywhere.
"""

import time

import torch

from vqvae2.autoencoder.artefact import load_autoencoder
from vqvae2.codes.extraction import open_codes
from vqvae2.codes.loading import load_code_batches
from vqvae2.config import Config, TrainConfig
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.likelihood import nats_per_code
from vqvae2.prior.objective import PriorObjective
from vqvae2.run.command_line import parse_config, run
from vqvae2.run.directory import codes_path
from vqvae2.run.launch import start_accelerator
from vqvae2.run.seeding import derive_seed
from vqvae2.training.average import WeightAverage
from vqvae2.training.objective import optimiser_of
from vqvae2.training.optimiser import set_rate
from vqvae2.training.order import StepOrder
from vqvae2.training.schedule import learning_rate

TIMED_STEPS = 12  # steps that the speed is measured on, after two that are not timed


class Speedrun:
    """A prior in training on the codes of a run."""

    def __init__(self, config: Config, level: str, total_steps: int | None = None):
        """Set up training for `total_steps`; None: those of the configuration."""
        self.level = level
        self.prior_config = config.priors[level]
        settings = vars(self.prior_config.train)
        total_steps = total_steps or settings["total_steps"]
        warmup = min(settings["warmup_steps"], total_steps // 4)
        self.train = TrainConfig(**{**settings, "total_steps": total_steps, "warmup_steps": warmup})
        self.accelerator = start_accelerator("priors", self.train.mixed_precision)
        trained = load_autoencoder(config.run_dir)
        self.codes, self.held_out = (
            open_codes(codes_path(config.run_dir, split), trained.sha256, trained.path)
            for split in ("train", "validation")
        )
        self.seed = config.seed
        codebooks = trained.module.codebooks()
        self.prior = build_prior(self.prior_config, trained.grids, level, len(trained.classes), config.seed, codebooks)
        self.prior.to(self.accelerator.device)
        self.objective = PriorObjective(self.prior, self.train.batch_size, config.seed)
        precision = self.accelerator.mixed_precision
        self.optimiser = optimiser_of(
            self.objective, self.train.optimizer, weight_decay=self.train.decay, precision=precision
        )
        decay = self.train.weight_average_decay
        self.average = WeightAverage(self.prior, decay) if decay else None
        order = StepOrder(len(self.codes), self.train.batch_size, config.seed, 0)
        self.batches = load_code_batches(self.codes, order)
        self.step = 0
        self.seconds = 0.0

    def steps(self, count: int) -> float:
        """Train for some steps; returns the mean training loss."""
        began, losses = time.perf_counter(), []
        self.prior.train()
        for _ in range(count):
            torch.manual_seed(derive_seed(self.seed, "dropout", self.step, 0, 0))
            set_rate(self.optimiser, learning_rate(self.train, self.step))
            with self.accelerator.autocast():
                loss = self.objective.loss(self.prior, next(self.batches), self.step).total
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.prior.parameters(), self.train.gradient_clip or torch.inf)
            self.optimiser.step()
            self.optimiser.zero_grad()
            if self.average:
                self.average.update(self.step, torch.ones(()))
            losses.append(loss.detach())
            self.step += 1
        mean = torch.stack(losses).mean().item()
        self.seconds += time.perf_counter() - began
        return mean

    def validate(self) -> float:
        """Held-out nats per code of the averaged weights."""
        self.prior.eval()
        window = list(range(len(self.held_out)))[:1024]
        with torch.no_grad():
            if self.average is None:
                return nats_per_code(self.prior, self.held_out, window, 32, self.accelerator)
            with self.average.swapped_in():
                return nats_per_code(self.prior, self.held_out, window, 32, self.accelerator)


def main() -> None:
    options = {
        "level": (str, "top", "level whose prior is trained"),
        "seconds": (float, 40.0, "training time"),
        "points": (int, 4, "number of validations, evenly spaced; the last one is at the end"),
    }
    config, values = parse_config(description=__doc__, **options)
    trial = Speedrun(config, values["level"])
    trial.steps(2)
    trial.seconds = 0.0
    trial.steps(TIMED_STEPS)
    total_steps = max(values["points"], round(values["seconds"] * TIMED_STEPS / trial.seconds))
    speedrun = Speedrun(config, values["level"], total_steps)
    for point in range(values["points"]):
        loss = speedrun.steps(total_steps * (point + 1) // values["points"] - speedrun.step)
        nats = speedrun.validate()
        print(
            f"{speedrun.seconds:6.1f} s  step {speedrun.step:5d}  held out {nats:.4f}  training {loss:.4f}", flush=True
        )


if __name__ == "__main__":
    run(main)
