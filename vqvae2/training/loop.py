"""The training loop of stages 1, 3 and 4.

Batches, learning rate and random numbers are functions of the step only, so a resumed run gives exactly the same
result.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from vqvae2.config import TrainConfig
from vqvae2.errors import StoppedError, UserError
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.model_files import export_model, read_description
from vqvae2.run.seeding import derive_seed
from vqvae2.run.stopping import StopRequests
from vqvae2.training.agreement import Agreement
from vqvae2.training.average import WeightAverage
from vqvae2.training.best import Best, best_of_state, better, overfitting
from vqvae2.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from vqvae2.training.clock import Clock
from vqvae2.training.metrics_log import MetricsLog
from vqvae2.training.objective import Objective, optimiser_of
from vqvae2.training.optimiser import load_optimiser_state, optimiser_state, set_rate, skip_where
from vqvae2.training.replicas import compare_replicas
from vqvae2.training.schedule import learning_rate
from vqvae2.training.sharding import shard_of

Metrics = dict[str, float]


def finished_step(directory: Path) -> int:
    """The number of updates after which the model in `directory` was exported; -1 if there is no exported model."""
    whole = (directory / "model.json").exists() and (directory / "model.safetensors").exists()
    return read_description(directory, "the stage")["step"] if whole else -1


def train(
    objective: Objective,
    batches: Callable[[int], Iterator[Any]],
    validate: Callable[[int], Metrics],
    config: TrainConfig,
    directory: Path,
    seed: int,
    accelerator: Accelerator,
    describe: Callable[[], dict[str, Any]],
    after_validation: Callable[[], object] = lambda: None,
) -> str | None:
    """Train to `config.total_steps` updates and export the model.

    Resumes from the newest checkpoint below `directory` if there is one.

    Args:
        objective: the module to train and its loss; the module is on the accelerator's device.
        batches: called with a step; yields this process's parts of the global batches from that step on, one per
            accumulation step.
        validate: called with the step; computes metrics of the module's current weights on held-out data, the same
            on every process.
        config: batch size, number of steps, learning rate and intervals.
        directory: directory of the stage.
        seed: seed of the run; dropout is seeded with (seed, step, accumulation step, process).
        accelerator: set up with the precision and accumulation of `config`.
        describe: called on every process with the weights to export in the module; returns the content of model.json.
        after_validation: called on the main process after the metrics of a validation are written.

    Returns:
        Why the processes should stop, if they were asked to after the last step; None: they were not.

    Raises:
        UserError: a loss or gradient is not finite, the weights of two processes differ, or a checkpoint cannot be
            written.
        StoppedError: the process received a signal to stop, or its launcher ended; the last step is saved.
    """
    # Create model, optimizer and weight average, and load the newest checkpoint.
    module = objective.module
    shard = shard_of(module, config.shard_optimizer, accelerator)
    average = WeightAverage(module, config.weight_average_decay, shard) if config.weight_average_decay else None
    optimiser = optimiser_of(objective, config.optimizer, shard, config.decay, accelerator.mixed_precision)
    best: Best | None = None
    logged: Metrics = {}  # means of the training metrics since the log line before the last
    sums: dict[str, Tensor] = {}  # sums of the metrics since the last log line, and the number of steps
    checkpoint = load_checkpoint(directory / "checkpoints", accelerator)
    first_step = checkpoint.step if checkpoint else 0
    if checkpoint:
        module.load_state_dict(checkpoint.groups["module"])
        load_optimiser_state(optimiser, module, checkpoint.groups["optimiser"])
        objective.load_state(checkpoint.groups["objective"])
        if average:
            average.load(checkpoint.groups["average"])
        best = best_of_state(checkpoint.groups.get("best", {}), shard)
        sums = {name: x.to(accelerator.device) for name, x in checkpoint.groups["sums"].items()}
        accelerator.print(f"going on from step {first_step}")
    del checkpoint  # its files stay open, and on the disk, as long as its tensors are referenced
    compiled = torch.compile(module) if config.compile else module
    # The state of the optimizer is on the device already, and moving it would import torch._dynamo, as in muon.py.
    model, optimiser = accelerator.prepare(compiled, optimiser, device_placement=[True, False])
    first_bad_step = torch.full((), torch.inf, device=accelerator.device)
    with refusals_reach_all(accelerator):
        log = MetricsLog(directory / "metrics.jsonl", first_step) if accelerator.is_main_process else None

    def check(step: int) -> None:
        _stop_if_bad(first_bad_step, directory)
        compare_replicas(step, {**module.state_dict(), **objective.state()}, accelerator)

    def save(step: int) -> None:
        check(step)
        if sums:  # continue from the mean over processes, as a resumed run does
            sums.update(zip(sums, accelerator.reduce(torch.stack(list(sums.values())), "mean").unbind(), strict=True))
        replicated = {"module": module.state_dict(), "objective": objective.state(), "sums": sums}
        sharded = {
            "optimiser": optimiser_state(optimiser.optimizer, module),
            "average": average.averages if average else {},
            "best": best.state() if best else {},
        }
        main = accelerator.is_main_process
        written = (replicated if main else {}) | (sharded if main or shard.processes > 1 else {})
        save_checkpoint(directory / "checkpoints", Checkpoint(step, written), accelerator)

    def report(step: int, split: str, metrics: Metrics) -> None:
        with refusals_reach_all(accelerator):
            if log:
                log.write(step, split, metrics)
        accelerator.log({f"{split}/{name}": value for name, value in metrics.items()}, step=step)

    bar = tqdm(
        total=config.total_steps,
        initial=first_step,
        desc=directory.name,
        unit="step",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
    )
    stream = batches(first_step)
    since = Clock(first_step)
    with bar, StopRequests() as requests:
        agreement = Agreement(requests, accelerator, first_step)
        for step in range(first_step, config.total_steps):
            if step == objective.start_step:
                bar.set_postfix_str("initializing from data")
                with accelerator.autocast():
                    objective.start(_global_batches(batches(step), config, accelerator), accelerator.reduce)

            # Accumulate the gradient of the global batch.
            module.train()
            set_rate(optimiser, learning_rate(config, step))
            losses: list[dict[str, Tensor]] = []
            for part in range(config.gradient_accumulation_steps):
                with since.waiting():
                    batch = next(stream)
                batch = _to_device(batch, accelerator.device)
                torch.manual_seed(derive_seed(seed, "dropout", step, part, accelerator.process_index))
                with accelerator.accumulate(model):
                    loss = objective.loss(model, batch, step)
                    accelerator.backward(loss.total)
                losses.append({"loss": loss.total.detach(), **loss.metrics})

            # Update. If loss or gradient is not finite, weights, codebooks and average do not change.
            norm = accelerator.clip_grad_norm_(module.parameters(), config.gradient_clip or math.inf)
            metrics = {name: cast(Tensor, sum(x[name] for x in losses)) / len(losses) for name in losses[0]}
            finite_loss = _everywhere(torch.isfinite(metrics["loss"]), accelerator)
            applied = torch.isfinite(norm) & finite_loss
            if accelerator.scaler is None:
                skip_where(optimiser.optimizer, ~applied)
                counts_as_bad = ~applied
            else:
                counts_as_bad = ~finite_loss  # the gradient scaler handles overflow itself
            optimiser.step()
            module.zero_grad()
            shard.share_parameters(module)
            objective.end_step(step, applied, accelerator.reduce)
            if average:
                average.update(step, applied)
            first_bad_step = torch.where(counts_as_bad, first_bad_step.clamp(max=step + 1), first_bad_step)
            metrics |= {"gradient_norm": norm, "steps": torch.ones_like(norm)}
            sums = {name: sums.get(name, 0.0) + value.float() for name, value in metrics.items()}

            # Log, validate, save.
            done = step + 1
            last = done == config.total_steps
            if done % config.log_every == 0 or last:
                check(done)
                logged_steps = sums.pop("steps")
                means = accelerator.reduce(torch.stack(list(sums.values())), "mean") / logged_steps
                logged = dict(zip(sums, means.tolist(), strict=True))
                sums = {}
                if accelerator.is_main_process and (warning := since.slow_data()):
                    bar.write(warning)
                rate = since.images_per_second(done, config.batch_size)
                report(done, "train", {**logged, "learning_rate": learning_rate(config, step), **rate})
                bar.set_postfix_str(
                    f"loss {logged['loss']:.4g}, {rate['images_per_second']:.3g} images/s", refresh=False
                )
            validates = done % config.validate_every == 0 or last
            if validates:
                with since.paused():
                    module.eval()
                    with torch.no_grad(), average.swapped_in() if average else nullcontext():
                        held_out = validate(done)
                        if objective.validated_by:
                            best = better(best, done, held_out[objective.validated_by], module, shard)
                    report(done, "validation", held_out)
                    if accelerator.is_main_process:
                        bar.write(
                            f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in held_out.items())
                        )
                        if best and (warning := overfitting(best, done, held_out, logged, objective.validated_by)):
                            bar.write(warning)
            if done % config.save_every == 0 or last:
                with since.paused():
                    save(done)
            if validates and accelerator.is_main_process:
                with since.paused():
                    try:
                        after_validation()
                    except Exception as error:  # a failed report must not stop training
                        bar.write(f"warning: the report page could not be written: {error}")
            bar.update()

            # Stop if any process received a request to stop.
            reason = agreement.reason(done)
            if reason and not last:
                if done % config.save_every != 0:
                    save(done)
                raise StoppedError(f"{directory}: stopped by {reason} and saved at step {done}")

        # Export the weights that later stages load: those of the best validation, if there is a metric that decides.
        module.eval()
        averaged = average.swapped_in() if average else nullcontext()
        with best.swapped_in(module, shard) if best else averaged:
            steps = {"step": config.total_steps, "exported_step": best.step if best else config.total_steps}
            description = {**describe(), **steps}
            with refusals_reach_all(accelerator):
                if accelerator.is_main_process:
                    export_model(directory, module.state_dict(), description)
        return agreement.reason(config.total_steps, due=True)


def _global_batches(parts: Iterator[Any], config: TrainConfig, accelerator: Accelerator) -> Iterator[list[Any]]:
    """This process's parts of each global batch, on the device."""
    while True:
        yield [_to_device(next(parts), accelerator.device) for _ in range(config.gradient_accumulation_steps)]


def _to_device(batch: Any, device: torch.device) -> Any:
    """Move a NamedTuple of tensors, or of dictionaries of tensors, to `device`."""
    moved = (
        {name: x.to(device, non_blocking=True) for name, x in field.items()}
        if isinstance(field, dict)
        else field.to(device, non_blocking=True)
        for field in batch
    )
    return type(batch)(*moved)


def _everywhere(flag: Tensor, accelerator: Accelerator) -> Tensor:
    """Whether a bool scalar is true on every process."""
    return accelerator.reduce((~flag).float()) == 0 if accelerator.num_processes > 1 else flag


def _stop_if_bad(first_bad_step: Tensor, directory: Path) -> None:
    bad = first_bad_step.item()
    if math.isfinite(bad):
        error = UserError(
            f"step {int(bad)}: the loss or its gradient is not finite; the update was skipped and training stops. "
            f"The checkpoints in {directory / 'checkpoints'} precede this step: run the same command again with a "
            "lower learning_rate, a smaller gradient_clip, or mixed_precision no"
        )
        error.reaches_all = True  # the flag is the same on all processes
        raise error
