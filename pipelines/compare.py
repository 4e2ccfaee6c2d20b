"""Compare VQ-VAE with its family: train every model on the same images and write comparison.json and comparison.html.

Run the same command again to resume.
"""

from pathlib import Path

from vqvae2.run.command_line import parse_sections, run

CONFIG = Path(__file__).parents[1] / "configs" / "family_mnist.yaml"


def main() -> None:
    from vqvae2.family.config import FamilyConfig

    config = parse_sections(FamilyConfig, __doc__, CONFIG)

    # not at the top: importing PyTorch slows --help down
    from vqvae2.family.checks import check_family
    from vqvae2.family.comparison import compare

    check_family(config)
    compare(config)


if __name__ == "__main__":
    run(main)
