"""Stage 4: train the priors of all levels except the coarsest. Run the same command again to resume."""

from vqvae2.errors import UserError
from vqvae2.run.command_line import parse_config, run


def main() -> None:
    meaning = "train only the prior of this level (default: all levels except the coarsest)"
    config, options = parse_config(description=__doc__, level=(str | None, None, meaning))
    levels = [level.name for level in config.autoencoder.levels[1:]]
    wanted = options["level"]
    if wanted is not None and wanted not in levels:
        below = ", ".join(levels) or "none"
        raise UserError(f"--level: {wanted!r} is not valid: the levels below the coarsest are: {below}")
    if not levels:
        print("there is only one level, and stage 3 trains its prior: nothing to do")

    from vqvae2.stages import train_priors  # not at the top: importing PyTorch slows --help down

    train_priors(config, [wanted] if wanted else levels)


if __name__ == "__main__":
    run(main)
