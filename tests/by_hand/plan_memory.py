"""Compare the peak of memory that plan.py finds for a training step with that of a real step, on this machine's CPU.

    python -m tests.by_hand.plan_memory --configs configs/quickstart.yaml,configs/mnist.yaml

prints a line for each stage that trains. `planned` and `measured` are bytes of live tensors, `resident` is the resident
memory of the process afterwards, which includes Python and PyTorch.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.planning.test_cost import measured_peak
from vqvae2.planning.stages import training_stages
from vqvae2.run.command_line import parse_config, parse_options, run


@dataclass(frozen=True)
class Options:
    """Options of the script.

    Attributes:
        configs: configuration files, separated by commas.
        batch_size: images of a step, at most those of the configuration.
        num_classes: number of classes of the images.
    """

    configs: str
    batch_size: int = 8
    num_classes: int = 8


def main() -> None:
    options = parse_options(Options, __doc__)
    for path in options.configs.split(","):
        config, _ = parse_config(["--config", path])
        for stage in training_stages(config, options.num_classes):
            batch = min(options.batch_size, stage.train.batch_size)
            checkpointing = bool(stage.checkpointing)
            planned = stage.cost(batch, 1, checkpointing, "no").peak
            with tempfile.TemporaryDirectory() as folder:
                measured = measured_peak(stage, batch, checkpointing, Path(folder))
            resident = psutil.Process().memory_info().rss
            found = {
                "planned": planned,
                "measured": measured,
                "ratio": round(planned / measured, 3),
                "resident": resident,
            }
            print(json.dumps({"config": path, "stage": stage.name, "batch": batch, **found}), flush=True)


if __name__ == "__main__":
    run(main)
