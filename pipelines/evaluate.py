"""Judge a finished run: evaluation.json and report.html. Run the same command again to go on where it stopped.

Give --run_dir alone, and the configuration is the one that the run was made with; any field of the section
evaluation can be set: --evaluation.num_samples 1000.
"""

from vqvae2.run.command_line import parse_config, run


def main() -> None:
    config, _ = parse_config(description=__doc__, of_run=True)

    from vqvae2.evaluation.evaluate import evaluate  # not at the top: PyTorch comes with it, and --help need not wait

    path = evaluate(config)
    print(f"figures: {path}; page: {path.with_name('report.html')}")


if __name__ == "__main__":
    run(main)
