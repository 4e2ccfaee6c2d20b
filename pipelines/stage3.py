"""Stage 3: train the prior of the coarsest level. Run the same command again to resume."""

from vqvae2.run.command_line import parse_config, run


def main() -> None:
    config, _ = parse_config(description=__doc__)

    from vqvae2.stages import train_prior  # not at the top: importing PyTorch slows --help down

    train_prior(config, config.autoencoder.levels[0].name)


if __name__ == "__main__":
    run(main)
