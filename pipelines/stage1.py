"""Stage 1: train the autoencoder. Run the same command again to resume."""

from vqvae2.command_line import parse_config, run
from vqvae2.stages import train_autoencoder


def main() -> None:
    config, _ = parse_config(description=__doc__)
    train_autoencoder(config)


if __name__ == "__main__":
    run(main)
