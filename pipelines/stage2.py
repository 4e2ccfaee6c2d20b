"""Stage 2: encode every image into an LMDB of codes. Run the same command again to resume."""

from vqvae2.run.command_line import parse_config, run


def main() -> None:
    config, _ = parse_config(description=__doc__)

    from vqvae2.stages import write_codes  # not at the top: with it comes PyTorch, which --help need not wait for

    write_codes(config)


if __name__ == "__main__":
    run(main)
