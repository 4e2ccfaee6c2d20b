"""Run each measurement in a separate process, so that its peak memory is not affected by the others."""

from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING

from vqvae2.config import Config
from vqvae2.errors import UserError

if TYPE_CHECKING:
    from vqvae2.benchmarks.report import Row

MEASUREMENTS = {  # name -> module and function, imported when needed
    "stage1": ("autoencoder", "measure_stage1"),
    "encode": ("autoencoder", "measure_encode"),
    "prior": ("prior", "measure_prior"),
    "sample": ("prior", "measure_sample"),
    "images": ("data", "measure_images"),
    "codes": ("data", "measure_codes"),
}


def measure(what: str, config: Config, repetitions: int) -> "list[Row]":
    """Run the named measurements and return their rows.

    Args:
        what: names from MEASUREMENTS, separated by commas.
        config: the configuration that gives the sizes and batch sizes.
        repetitions: number of timed calls of each function.

    Raises:
        UserError: a name is unknown, or `repetitions` is less than 1.
    """
    names = [name.strip() for name in what.split(",")]
    for name in names:
        if name not in MEASUREMENTS:
            raise UserError(f"what: {name!r} is not valid: use one or more of {', '.join(MEASUREMENTS)}")
    if repetitions < 1:
        raise UserError(f"repetitions: {repetitions} is not valid: use 1 or more")
    rows: list[Row] = []
    for name in names:
        module, function = MEASUREMENTS[name]
        call = getattr(import_module(f"vqvae2.benchmarks.{module}"), function)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            rows += alone.submit(call, config, repetitions).result()
    return rows
