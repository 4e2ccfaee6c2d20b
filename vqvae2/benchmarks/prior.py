"""Speed of the priors: training and sampling compared with a matrix product, sampling with a full pass per code."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from vqvae2.benchmarks.operations import OperationCounter
from vqvae2.benchmarks.report import Row, conditions
from vqvae2.benchmarks.timing import peak_memory_gib, seconds_per_call, update
from vqvae2.codes.loading import CodeBatch
from vqvae2.config import Config, LevelGrid, TrainConfig, level_grids
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.cache import Cache
from vqvae2.prior.objective import PriorObjective
from vqvae2.prior.prior import Prior
from vqvae2.prior.sampling import sample_categorical, sample_codes
from vqvae2.prior.waves import Wavefront
from vqvae2.run.launch import start_accelerator
from vqvae2.run.precision import widest_float
from vqvae2.training.objective import optimiser_of
from vqvae2.training.optimiser import set_rate

CLASSES = 10
PRODUCT_SIDE = 4096  # side of the square matrices whose product is the limit
SAMPLING_BATCHES = (1, 2, 16, 64)
WHOLE_PASS_BATCHES = (1, 2)
WHOLE_GRIDS = 2  # at most; sampling all codes takes long enough to be measured without repetition
SCALING_GRIDS = (16, 32, 64, 128)


def measure_prior(config: Config, repetitions: int) -> list[Row]:
    """Time a training step of the prior of each level on random codes: images and FLOP per second, peak memory."""
    rows: list[Row] = []
    for name, prior_config in config.priors.items():
        train = prior_config.train
        accelerator = start_accelerator(f"priors.{name}.train", train.mixed_precision)
        prior = new_prior(config, name).to(accelerator.device)
        step = _training_step(prior, train, accelerator)
        with OperationCounter() as counter:
            step()
        memory = peak_memory_gib(accelerator.device)
        product = matrix_product(accelerator.device, accelerator.mixed_precision)
        seconds = seconds_per_call({"step": step, "product": product}, accelerator.device, repetitions)
        rate = counter.total / seconds["step"]
        limit = 2 * PRODUCT_SIDE**3 / seconds["product"]
        grid = (prior.grid.height, prior.grid.width)
        shared = conditions("prior", grid, train.batch_size, accelerator.mixed_precision, accelerator.device)
        rows += [
            {
                **shared,
                "way": f"training step, {name}",
                "images_per_second": train.batch_size / seconds["step"],
                "gflop_per_second": rate / 1e9,
                "share_of_limit": rate / limit,
                "peak_memory_gib": memory,
            },
            {**shared, "way": "matrix product", "gflop_per_second": limit / 1e9},
        ]
    return rows


def measure_sample(config: Config, repetitions: int) -> list[Row]:
    """Time sampling, in waves and by a full pass per code, for each level and all levels together.

    Sampling in waves is then timed for increasing sizes of the grid.
    """
    accelerator = start_accelerator("stage2", "auto")
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    rows: list[Row] = []
    priors = [new_prior(config, name).to(accelerator.device, dtype).eval() for name in config.priors]
    product = matrix_product(accelerator.device, accelerator.mixed_precision)
    seconds = seconds_per_call({"product": product}, accelerator.device, repetitions)
    limit = 2 * PRODUCT_SIDE**3 / seconds["product"]
    for batch in SAMPLING_BATCHES:
        of_levels = [row for prior in priors for row in _sampling_rows(prior, batch, accelerator, repetitions, limit)]
        rows += of_levels + _together(of_levels)
    finest = config.autoencoder.levels[-1].name
    for side in SCALING_GRIDS:
        prior = new_prior(config, finest, side).to(accelerator.device, dtype).eval()
        rows += _sampling_rows(prior, 2, accelerator, repetitions, None)
    return rows


def _together(of_levels: list[Row]) -> list[Row]:
    """Sum the rows of the levels to rows for whole images, one row for each way."""
    seconds: dict[str, float] = {}
    for row in of_levels:
        way = row["way"].split(",")[0]
        seconds[way] = seconds.get(way, 0.0) + 3600 * row["batch_size"] / row["images_per_hour"]
    batch = of_levels[0]["batch_size"]
    shared = {key: of_levels[0][key] for key in ("what", "batch_size", "precision", "device")}
    return [
        {**shared, "way": f"{way}, all levels", "seconds_per_batch": x, "images_per_hour": 3600 * batch / x}
        for way, x in seconds.items()
    ]


def new_prior(config: Config, level: str, side: int | None = None) -> Prior:
    """Build an untrained prior of a level.

    With `side`, the finest grid is side x side codes, and the coarser grids are scaled accordingly.
    """
    shapes = level_grids(config.autoencoder.levels, config.images.height_width)
    if side is not None:
        finest = shapes[-1]
        shapes = [
            LevelGrid(x.name, x.height * side // finest.height, x.width * side // finest.width, x.codebook_size)
            for x in shapes
        ]
    return build_prior(config.priors[level], shapes, level, CLASSES, config.seed)


def _random_codes(shapes: list[LevelGrid], batch: int, device: torch.device) -> dict[str, Tensor]:
    return {x.name: torch.randint(x.codebook_size, (batch, x.height, x.width), device=device) for x in shapes}


def _training_step(prior: Prior, train: TrainConfig, accelerator: Accelerator) -> Callable[[], None]:
    batch_size = train.batch_size
    objective = PriorObjective(prior, batch_size, seed=0)
    optimiser = optimiser_of(objective, train.optimizer, precision=accelerator.mixed_precision)
    set_rate(optimiser, train.learning_rate)
    indices = torch.arange(batch_size, device=accelerator.device)
    codes = _random_codes([*prior.coarser, prior.grid], batch_size, accelerator.device)
    batch = CodeBatch(codes, indices % CLASSES, indices)

    def step() -> None:
        with accelerator.autocast():
            loss = objective.loss(prior, batch, 0)
        update(loss.total, prior, optimiser)

    return step


def matrix_product(device: torch.device, precision: str, side: int = PRODUCT_SIDE) -> Callable[[], None]:
    """A function that multiplies two square matrices on a device in a precision: no, bf16 or fp16."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)

    return product


def _sampling_rows(
    prior: Prior, batch: int, accelerator: Accelerator, repetitions: int, limit: float | None
) -> list[Row]:
    """Time the sampling of all codes of a level; with `limit` (FLOP per second), also whole passes, one per code."""
    device = accelerator.device
    height, width = prior.grid.height, prior.grid.width
    coarser = _random_codes(prior.coarser, batch, device) or None
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    codes = _random_codes([prior.grid], batch, device)[prior.grid.name]
    uniforms = torch.rand(batch, height * width, dtype=widest_float(device), device=device)

    def waves() -> None:
        sample_codes(prior, uniforms, coarser, labels)

    @torch.inference_mode()
    def whole() -> None:
        sample_categorical(prior(codes, coarser, labels)[:, :, height // 2, width // 2], uniforms[:, 0])

    seconds = seconds_per_call({"waves": waves}, device, min(repetitions, WHOLE_GRIDS), warm_up_calls=0)
    shared = conditions("sample", (height, width), batch, str(next(prior.parameters()).dtype)[6:], device)
    front = Wavefront(prior, device)
    rows: list[Row] = [
        {
            **shared,
            "way": f"waves, {prior.grid.name}",
            "waves": front.num_waves,
            "seconds_per_wave": seconds["waves"] / front.num_waves,
            "seconds_per_code": seconds["waves"] / (height * width),
            "images_per_hour": 3600 * batch / seconds["waves"],
        }
    ]
    if limit is not None:
        rate = _flops_per_code(prior, front, batch, coarser, labels) * height * width * batch / seconds["waves"]
        rows[0] |= {"gflop_per_second": rate / 1e9, "share_of_limit": rate / limit}
    if limit is not None and batch in WHOLE_PASS_BATCHES:
        seconds = seconds_per_call({"whole passes": whole}, device, repetitions)
        rows.append(
            {
                **shared,
                "way": f"whole passes, {prior.grid.name}",
                "seconds_per_code": seconds["whole passes"],
                "images_per_hour": 3600 * batch / (seconds["whole passes"] * height * width),
            }
        )
    return rows


@torch.inference_mode()
def _flops_per_code(
    prior: Prior, front: Wavefront, batch: int, coarser: dict[str, Tensor] | None, labels: Tensor
) -> float:
    """Floating point operations per code of matrix products and attention, counted in a wave in the middle."""
    cache = Cache(prior, front, batch, coarser, labels)
    front.begin(front.num_waves // 2)
    front.update()
    with OperationCounter() as counter:
        cache.write(cache.logits().argmax(2))
    return counter.total / (batch * front.codes_in(front.num_waves // 2))
