"""Training speed of the priors compared with a matrix product; cached sampling compared with a full pass per code."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqvae2.benchmarks.report import Row, conditions
from vqvae2.benchmarks.timing import peak_memory_gib, seconds_per_call, update
from vqvae2.codes.loading import CodeBatch
from vqvae2.config import Config, LevelGrid, level_grids
from vqvae2.prior.artefact import build_prior
from vqvae2.prior.objective import PriorObjective
from vqvae2.prior.prior import Cache, Prior
from vqvae2.prior.sampling import capture, sample_categorical
from vqvae2.run.launch import start_accelerator
from vqvae2.run.precision import widest_float
from vqvae2.training.optimiser import build_optimiser, set_rate

CLASSES = 10
PRODUCT_SIDE = 4096  # side of the square matrices whose product is the limit
SAMPLING_BATCHES = (1, 2, 16)
SAMPLED_ROWS = 2  # sampled in each call, in the middle of the grid
SCALING_GRIDS = (16, 32, 64, 128)


def measure_prior(config: Config, repetitions: int) -> list[Row]:
    """Time a training step of the prior of each level on random codes: images and FLOP per second, peak memory."""
    rows: list[Row] = []
    for name, prior_config in config.priors.items():
        train = prior_config.train
        accelerator = start_accelerator(f"priors.{name}.train", train.mixed_precision)
        prior = new_prior(config, name).to(accelerator.device)
        step = _training_step(prior, train.batch_size, train.learning_rate, accelerator)
        with FlopCounterMode(display=False) as counter:
            step()
        memory = peak_memory_gib(accelerator.device)
        product = _matrix_product(accelerator)
        seconds = seconds_per_call({"step": step, "product": product}, accelerator.device, repetitions)
        rate = counter.get_total_flops() / seconds["step"]
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
    """Time sampling, cached and by full passes, for each level and all levels together, at several batch sizes.

    Cached sampling is then timed for increasing sizes of the grid.
    """
    accelerator = start_accelerator("stage2", "auto")
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    rows: list[Row] = []
    priors = [new_prior(config, name).to(accelerator.device, dtype).eval() for name in config.priors]
    for batch in SAMPLING_BATCHES:
        of_levels = [
            row for prior in priors for row in _sampling_rows(prior, batch, accelerator, repetitions, whole_passes=True)
        ]
        rows += of_levels + _together(of_levels)
    finest = config.autoencoder.levels[-1].name
    for side in SCALING_GRIDS:
        prior = new_prior(config, finest, side).to(accelerator.device, dtype).eval()
        rows += _sampling_rows(prior, 2, accelerator, repetitions, whole_passes=False)
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


def _training_step(prior: Prior, batch_size: int, rate: float, accelerator: Accelerator) -> Callable[[], None]:
    objective = PriorObjective(prior, batch_size, seed=0)
    optimiser = build_optimiser(prior, objective.rate_factors, objective.betas)
    set_rate(optimiser, rate)
    indices = torch.arange(batch_size, device=accelerator.device)
    codes = _random_codes([*prior.coarser, prior.grid], batch_size, accelerator.device)
    batch = CodeBatch(codes, indices % CLASSES, indices)

    def step() -> None:
        with accelerator.autocast():
            loss = objective.loss(prior, batch, 0)
        update(loss.total, prior, optimiser)

    return step


def _matrix_product(accelerator: Accelerator) -> Callable[[], None]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    a, b = (torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=accelerator.device).to(dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)

    return product


def _sampling_rows(
    prior: Prior, batch: int, accelerator: Accelerator, repetitions: int, whole_passes: bool
) -> list[Row]:
    """Time cached sampling in the middle of the grid and, with `whole_passes`, a pass over the whole grid per code."""
    device = accelerator.device
    height, width = prior.grid.height, prior.grid.width
    sampled_rows = range(height // 2, min(height, height // 2 + SAMPLED_ROWS))
    coarser = _random_codes(prior.coarser, batch, device) or None
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    codes = _random_codes([prior.grid], batch, device)[prior.grid.name]
    uniforms = torch.rand(batch, dtype=widest_float(device), device=device)
    with torch.inference_mode():
        cache = Cache(prior, batch, coarser, labels)
        cache.begin_row(0)

        def sample_next() -> None:
            cache.write(sample_categorical(cache.logits(), uniforms))

        if device.type == "cuda":
            sample_next = capture(sample_next)

    @torch.inference_mode()
    def cached() -> None:
        for row in sampled_rows:
            cache.begin_row(row)
            for _ in range(width):
                sample_next()

    @torch.inference_mode()
    def whole() -> None:
        sample_categorical(prior(codes, coarser, labels)[:, :, height // 2, width // 2], uniforms)

    ways = {"cached": cached, "whole passes": whole} if whole_passes else {"cached": cached}
    sampled = {"cached": len(sampled_rows) * width, "whole passes": 1}
    seconds = seconds_per_call(ways, device, repetitions)
    shared = conditions("sample", (height, width), batch, str(next(prior.parameters()).dtype)[6:], device)
    return [
        {
            **shared,
            "way": f"{way}, {prior.grid.name}",
            "seconds_per_code": seconds[way] / sampled[way],
            "images_per_hour": 3600 * batch * sampled[way] / (seconds[way] * height * width),
        }
        for way in ways
    ]
