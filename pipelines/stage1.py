"""Stage 1: train the autoencoder. Run the same command again to resume."""

from vqvae2.run.command_line import parse_config, run


def main() -> None:
    config, _ = parse_config(description=__doc__)

    from vqvae2.stages import train_autoencoder  # not at the top: importing PyTorch slows --help down

    train_autoencoder(config)


if __name__ == "__main__":
    run(main)
