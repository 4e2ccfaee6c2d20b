"""Evaluate a finished run: write evaluation.json and report.html. Run the same command again to resume.

With --run_dir and no --config, the configuration of the run is used. Any field of the section evaluation can be set,
such as --evaluation.num_samples 1000.
"""

from vqvae2.run.command_line import parse_config, run


def main() -> None:
    config, _ = parse_config(description=__doc__, of_run=True)

    from vqvae2.evaluation.evaluate import evaluate  # not at the top: importing PyTorch slows --help down

    path = evaluate(config)
    print(f"metrics: {path}; report: {path.with_name('report.html')}")


if __name__ == "__main__":
    run(main)
