"""The plan of a run: a table of all stages, what it assumes, and what to change where a stage does not fit."""

from typing import NamedTuple

from vqvae2.config import SAMPLES_AT_A_TIME, Config, level_grids, local_batch_size
from vqvae2.errors import UserError
from vqvae2.images.shapes import CLASSES
from vqvae2.images.sources import SHAPES_TRAIN
from vqvae2.planning.cost import EncodingCost, TrainingCost, encoding_cost
from vqvae2.planning.devices import USABLE, Device, device_called, usable_cores
from vqvae2.planning.fake import without_memory
from vqvae2.planning.loading import loading_rates
from vqvae2.planning.remedies import encoding_remedy, remedy
from vqvae2.planning.sizes import checkpoint_disk_bytes, record_bytes, sample_bytes
from vqvae2.planning.speed import CPU, Speed, cpu_speed, gpu_speed
from vqvae2.planning.stages import Stage, random_images, training_stages
from vqvae2.planning.table import Column, gib, short, table
from vqvae2.prior.waves import num_waves
from vqvae2.run.precision import resolve_precision
from vqvae2.training.window import WINDOW_IMAGES

ASSUMED_CLASSES = 1000
HOUR = 3600.0


class Setting(NamedTuple):
    """What a run is planned for; `num_images` is None if it is not known."""

    config: Config
    processes: int
    num_images: int | None
    num_classes: int
    name: str
    device: Device

    @property
    def limit(self) -> float:
        """Bytes of the device's memory that can be used."""
        return USABLE * self.device.memory_gib * 2**30

    def precision(self, key: str, wanted: str) -> str:
        """The precision of a section on the device."""
        if self.name == "cpu":
            return resolve_precision(f"{key}.mixed_precision", wanted, CPU)  # type: ignore[arg-type]
        return "bf16" if wanted == "auto" else wanted


def plan(config: Config, processes: int, num_images: int | None, num_classes: int | None, device: str) -> str:
    """Plan a run and return the text to print. Reads no images and allocates no model, but with device cpu, where a
    training step of each stage is timed.

    Raises:
        UserError: the device is unknown, a number is not valid, or the processes do not divide a batch.
    """
    for name, value, least in (
        ("processes", processes, 1),
        ("num_images", num_images, 1),
        ("num_classes", num_classes, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"{name}: {value} is not valid: use {least} or more")
    drawn = config.images.source == "shapes"
    known = num_images or config.images.max_images or (SHAPES_TRAIN if drawn else None)
    classes = num_classes if num_classes is not None else len(CLASSES) if drawn else ASSUMED_CLASSES
    setting = Setting(config, processes, known, classes, device, device_called(device, processes))
    stages = training_stages(config, classes)
    batches = [stage.local_batch(processes) for stage in stages]
    local_batch_size("stage2.batch_size", config.stage2.batch_size, processes)

    rates = loading_rates(config)
    columns: dict[str, Column] = {}
    remedies: list[str] = []
    speeds: list[Speed] = []
    for stage, batch in zip(stages, batches, strict=True):
        precision = setting.precision(stage.key, stage.train.mixed_precision)
        ways = [False] if stage.checkpointing is None else [False, True]
        accumulation = stage.train.gradient_accumulation_steps
        unsharded = {x: stage.cost(batch, accumulation, x, precision, processes) for x in ways}
        costs = {x: cost.sharded() if stage.train.shard_optimizer else cost for x, cost in unsharded.items()}
        cost = costs[bool(stage.checkpointing)]
        cpu = device == "cpu"
        speed = cpu_speed(stage, cost, batch, precision) if cpu else gpu_speed(stage, setting.device, precision)
        if cpu:  # processes and loader workers share the cores; the threads of an operation wait for the slowest one
            loading = 1 / max(rates.values()) / min(processes, usable_cores()) if stage.name == "stage 1" else 0.0
            speed = speed._replace(peak=speed.peak / processes, loading=loading)
        speeds.append(speed)
        columns[stage.name] = {
            **_memory(stage, costs, batch, setting),
            **_time(stage, cost, batch, speed, setting, rates),
        }
        if cost.peak > setting.limit:
            remedies.append(remedy(stage, unsharded, batch, precision, setting.limit, processes))
        if stage.name == "stage 1":
            columns["stage 2"], change = _encoding(setting, speed, rates)
            remedies += change
        else:
            columns[stage.name] |= _sampling(stage, cost, batch, speed, setting)
    return "\n\n".join([_heading(setting), table(columns), _summary(setting, speeds, columns, remedies)])


def _memory(stage: Stage, costs: dict[bool, TrainingCost], batch: int, setting: Setting) -> Column:
    cost = costs[bool(stage.checkpointing)]
    other = {f"peak with checkpointing {'on' if x else 'off'}": gib(y.peak) for x, y in costs.items() if True in costs}
    return {
        "million parameters": short(cost.num_parameters / 1e6),
        "images of a process in a pass": f"{batch}",
        "accumulation steps": f"{stage.train.gradient_accumulation_steps}",
        "GiB: parameters": gib(cost.parameters),
        "gradients": gib(cost.gradients),
        "optimizer": gib(cost.optimiser),
        "weight average": gib(cost.average),
        "best weights": gib(cost.best),
        "activations": gib(cost.activations),
        "peak of a process": gib(cost.peak),
        **other,
        f"fits in {setting.limit / 2**30:.0f} GiB": "yes" if cost.peak <= setting.limit else "NO",
    }


def _time(
    stage: Stage, cost: TrainingCost, batch: int, speed: Speed, setting: Setting, rates: dict[str, float]
) -> Column:
    train = stage.train
    seconds = cost.step / speed.rate + train.batch_size * speed.loading
    validations = -(-train.total_steps // train.validate_every)
    validation = cost.forward / batch * WINDOW_IMAGES / setting.processes / speed.rate
    rate = train.batch_size / seconds
    passes = train.total_steps * train.batch_size / setting.num_images if setting.num_images else None
    column = {
        "TFLOP of a step and process": short(cost.step / 1e12),
        "share of the peak": f"{speed.share:.0%} {'measured' if speed.measured else 'assumed'}",
        "steps": f"{train.total_steps:,}",
        "passes over the images": short(passes) if passes else "?",
        "seconds a step": short(seconds),
        "hours": short((train.total_steps * seconds + validations * validation) / HOUR),
        "images/s to load": short(rate),
        "GiB of checkpoints": gib(checkpoint_disk_bytes(cost.checkpoint, cost.model)),
    }
    return column | (_cores(rate, rates) if stage.name == "stage 1" else {})


def _encoding(setting: Setting, speed: Speed, rates: dict[str, float]) -> tuple[Column, list[str]]:
    """Stage 2, at the speed of stage 1: its column, and what to change if it does not fit."""
    config, stage2 = setting.config, setting.config.stage2
    batch = stage2.batch_size // setting.processes
    model = without_memory(lambda: training_stages(config, setting.num_classes)[0].build(False))
    precision = setting.precision("stage2", stage2.mixed_precision)

    def cost_of(count: int) -> EncodingCost:
        return encoding_cost(model, lambda: random_images(config, count), precision)

    cost, limit = cost_of(batch), setting.limit
    fits = cost.peak <= limit
    change = [] if fits else [encoding_remedy(lambda x: cost_of(x).peak, batch, limit, setting.processes)]
    rate = 1 / (cost.operations / batch / setting.processes / speed.rate + speed.loading)
    size = record_bytes(level_grids(config.autoencoder.levels, config.images.height_width))
    images = setting.num_images and setting.num_images * stage2.copies
    column = {
        "images of a process in a pass": f"{batch}",
        "peak of a process": gib(cost.peak),
        f"fits in {limit / 2**30:.0f} GiB": "yes" if fits else "NO",
        "hours": short(images / rate / HOUR) if images else "?",
        "images/s to load": short(rate),
        **_cores(rate, rates),
        "GiB of codes": gib(images * size) if images else f"{size} bytes an image",
    }
    return column, change


def _sampling(stage: Stage, cost: TrainingCost, batch: int, speed: Speed, setting: Setting) -> Column:
    """Every value is computed once, as in a forward pass; each wave reads all parameters once."""
    waves = num_waves(without_memory(lambda: stage.build(False)))
    computing = cost.forward / batch * SAMPLES_AT_A_TIME / speed.rate
    bytes_read = waves * cost.num_parameters * (2 if setting.precision("stage2", "auto") == "bf16" else 4)
    reading = bytes_read / (setting.device.bandwidth * 1e9) if setting.device.bandwidth else 0.0
    return {
        "waves to sample": f"{waves:,}",
        f"seconds to sample {SAMPLES_AT_A_TIME}, at least": short(max(computing, reading)),
    }


def _cores(rate: float, rates: dict[str, float]) -> Column:
    return {f"cores to load, {name}": short(rate / x) for name, x in rates.items()}


def _heading(setting: Setting) -> str:
    images = f"{setting.num_images:,} images" if setting.num_images else "an unknown number of images (--num_images)"
    return (
        f"{setting.config.run_dir} on {setting.processes} x {setting.name}, {images}, {setting.num_classes:,} classes"
    )


def _summary(setting: Setting, speeds: list[Speed], columns: dict[str, Column], remedies: list[str]) -> str:
    device = setting.device
    samples = setting.config.evaluation.num_samples
    seconds = [
        float(x.replace(",", ""))
        for column in columns.values()
        for name, x in column.items()
        if name.startswith("seconds to sample")
    ]
    hours = sum(seconds) * samples / SAMPLES_AT_A_TIME / setting.processes / HOUR
    lines = [
        f"{samples:,} samples: at least {short(hours)} hours, at most {gib(sample_bytes(setting.config, samples))} GiB",
        f"peak: {speeds[0].peak / 1e12:.3g} TFLOP/s in each process ({device.source})",
        "Not counted: communication, writing of checkpoints, memory of libraries. A peak is that of live tensors.",
    ]
    if setting.name != "cpu":
        lines.append("The shares of the peak are assumptions. Sampling also takes the time to start kernels.")
        lines.append("Cores to load images are those of this machine.")
    if setting.num_classes == ASSUMED_CLASSES:
        lines.append(f"{ASSUMED_CLASSES:,} classes unless --num_classes says otherwise; 0: no classes")
    return "\n".join(lines + [f"does not fit: {line}" for line in remedies])
