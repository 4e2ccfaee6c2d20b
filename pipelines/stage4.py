"""Stage 4: train the prior of every level below the coarsest. Run the same command again to resume."""

from vqvae2.errors import UserError
from vqvae2.run.command_line import parse_config, run


def main() -> None:
    meaning = "train the prior of this level only (default: of every level below the coarsest)"
    config, options = parse_config(description=__doc__, level=(str | None, None, meaning))
    levels = [level.name for level in config.autoencoder.levels[1:]]
    wanted = options["level"]
    if wanted is not None and wanted not in levels:
        below = ", ".join(levels) or "there is none"
        raise UserError(f"--level: {wanted!r} is not a level below the coarsest: {below}")
    if not levels:
        print("one level: there is no lower one, nothing to do")

    from vqvae2.stages import train_prior  # not at the top: with it comes PyTorch, which --help need not wait for

    for level in [wanted] if wanted else levels:
        train_prior(config, level)


if __name__ == "__main__":
    run(main)
