"""Measure how fast the parts of a run are, each beside the limit that the machine sets for it.

Prints a table and appends it to a JSON file. Any field of the configuration can be set: --images.size,
--stage1.batch_size (of stage1), --stage2.batch_size (of encode), --priors.top.train.batch_size (of prior).
"""

from pathlib import Path

from vqvae2.benchmarks.measure import MEASUREMENTS, measure
from vqvae2.run.command_line import parse_config, run

CONFIG = Path(__file__).parents[1] / "configs" / "benchmark.yaml"


def main() -> None:
    options = {
        "what": (str, ",".join(MEASUREMENTS), "what to measure, separated by commas"),
        "repetitions": (int, 10, "calls of each, of which the fastest counts"),
        "output": (str, "benchmark.json", "the JSON file that the table is appended to"),
    }
    config, values = parse_config(description=__doc__, default_config=CONFIG, **options)

    from vqvae2.benchmarks.report import append_rows, read_rows, table  # PyTorch comes with it, --help need not wait

    output = Path(values["output"])
    read_rows(output)  # refused before the work, not after
    rows = measure(values["what"], config, values["repetitions"])
    print(table(rows))
    append_rows(output, rows)


if __name__ == "__main__":
    run(main)
