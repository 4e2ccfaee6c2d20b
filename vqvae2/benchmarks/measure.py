"""Each measurement in a process of its own, so that its peak memory is its own too."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from vqvae2.benchmarks.autoencoder import measure_encode, measure_stage1
from vqvae2.benchmarks.data import measure_codes, measure_images
from vqvae2.benchmarks.prior import measure_prior, measure_sample
from vqvae2.benchmarks.report import Row
from vqvae2.config import Config
from vqvae2.errors import UserError

MEASUREMENTS: dict[str, Callable[[Config, int], list[Row]]] = {
    "stage1": measure_stage1,
    "encode": measure_encode,
    "prior": measure_prior,
    "sample": measure_sample,
    "images": measure_images,
    "codes": measure_codes,
}


def measure(what: str, config: Config, repetitions: int) -> list[Row]:
    """The rows of the named measurements.

    Args:
        what: names out of MEASUREMENTS, separated by commas.
        config: sizes and batch sizes.
        repetitions: calls of each way.

    Raises:
        UserError: an unknown name, or no repetitions.
    """
    names = [name.strip() for name in what.split(",")]
    for name in names:
        if name not in MEASUREMENTS:
            raise UserError(f"what: {name!r} will not do: one or more of {', '.join(MEASUREMENTS)}")
    if repetitions < 1:
        raise UserError(f"repetitions: {repetitions} will not do: 1 or more")
    rows: list[Row] = []
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            rows += alone.submit(MEASUREMENTS[name], config, repetitions).result()
    return rows
