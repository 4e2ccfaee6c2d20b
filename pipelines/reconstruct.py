"""Reconstruct every image of a folder and list how likely each is. Run the same command again to resume."""

from dataclasses import dataclass

from vqvae2.run.command_line import parse_options, run


@dataclass(frozen=True)
class Options:
    """Flags of reconstruct.py.

    Attributes:
        run_dir: directory of a run whose stage 1 has finished; without finished priors, no likelihood is written.
        model: instead of run_dir, a bundled model such as mnist, a folder of publish.py, or a repository USER/NAME.
        images: folder of images, also in subfolders; a first folder that is named as a class gives the label.
        output: folder to write to; not given: reconstructions/NAME of the run, where NAME is the folder's name, or
            reconstructions/MODEL/NAME, with USER/NAME of a repository as MODEL.
        beside: also show the original and the image of the coarsest codes alone, left of each reconstruction.
        workers: processes that load images, in each process.
        dtype: auto (bfloat16 if the hardware supports it natively, else float32), float32 or bfloat16.
    """

    images: str
    run_dir: str | None = None
    model: str | None = None
    output: str | None = None
    beside: bool = False
    workers: int = 2
    dtype: str = "auto"


def main() -> None:
    options = parse_options(Options, __doc__)

    # not at the top: PyTorch slows --help down
    from pathlib import Path

    from vqvae2.generation.controls import at_least
    from vqvae2.generation.folder import reconstruct_folder
    from vqvae2.generation.opening import open_generator, reconstructions_folder
    from vqvae2.run.launch import join_processes, refusals_reach_all

    at_least("workers", options.workers, 0)
    state = join_processes()
    with refusals_reach_all(state):
        generator = open_generator(options.run_dir, options.model, state.device, options.dtype)
    images = Path(options.images)
    output = reconstructions_folder(generator, options.model, images, options.output)
    table = reconstruct_folder(generator, images, state, output, options.beside, options.workers)
    state.print(f"table: {table}; pictures: {table.with_name('pictures')}")


if __name__ == "__main__":
    run(main)
