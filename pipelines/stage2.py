"""Stage 2: encode all images and write their codes to LMDB files. Run the same command again to resume."""

from vqvae2.run.command_line import parse_config, run


def main() -> None:
    config, _ = parse_config(description=__doc__)

    from vqvae2.stages import write_codes  # not at the top: importing PyTorch slows --help down

    write_codes(config)


if __name__ == "__main__":
    run(main)
