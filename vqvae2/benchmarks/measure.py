"""Each measurement in a process of its own, so that its peak memory is its own too."""

from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING

from vqvae2.config import Config
from vqvae2.errors import UserError

if TYPE_CHECKING:
    from vqvae2.benchmarks.report import Row

MEASUREMENTS = {  # name -> the module and the function that make it, imported when it is asked for
    "stage1": ("autoencoder", "measure_stage1"),
    "encode": ("autoencoder", "measure_encode"),
    "prior": ("prior", "measure_prior"),
    "sample": ("prior", "measure_sample"),
    "images": ("data", "measure_images"),
    "codes": ("data", "measure_codes"),
}


def measure(what: str, config: Config, repetitions: int) -> "list[Row]":
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
            raise UserError(f"what: {name!r} is not valid: one or more of {', '.join(MEASUREMENTS)}")
    if repetitions < 1:
        raise UserError(f"repetitions: {repetitions} is not valid: 1 or more")
    rows: list[Row] = []
    for name in names:
        module, function = MEASUREMENTS[name]
        call = getattr(import_module(f"vqvae2.benchmarks.{module}"), function)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            rows += alone.submit(call, config, repetitions).result()
    return rows
