"""Measure the speed of the parts of a run. Training and encoding are compared with a limit for the machine.

Prints a table and appends it to a JSON file. Any field of the configuration can be set, such as --images.size,
--stage1.batch_size (for stage1), --stage2.batch_size (for encode) or --priors.top.train.batch_size (for prior).
"""

from pathlib import Path

from vqvae2.benchmarks.measure import MEASUREMENTS, measure
from vqvae2.run.command_line import parse_config, run

CONFIG = Path(__file__).parents[1] / "configs" / "benchmark.yaml"


def main() -> None:
    options = {
        "what": (str, ",".join(MEASUREMENTS), "measurements to run, separated by commas"),
        "repetitions": (int, 10, "timed calls in each measurement; the fastest one counts"),
        "output": (str, "benchmark.json", "JSON file that the results are appended to"),
    }
    config, values = parse_config(description=__doc__, default_config=CONFIG, **options)

    # not at the top: importing PyTorch slows --help down
    from vqvae2.benchmarks.report import append_rows, read_rows, table

    output = Path(values["output"])
    read_rows(output)  # fails early if the file is not valid
    rows = measure(values["what"], config, values["repetitions"])
    print(table(rows))
    append_rows(output, rows)


if __name__ == "__main__":
    run(main)
