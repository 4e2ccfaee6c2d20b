"""Sample new images from a trained run into its samples/; run again to go on with an interrupted one."""

from dataclasses import dataclass

from vqvae2.config import SAMPLES_AT_A_TIME
from vqvae2.run.command_line import parse_options, run


@dataclass(frozen=True)
class Options:
    """What to sample.

    Attributes:
        run_dir: of a run whose stages have all finished.
        num_images: how many images.
        label: a class by name or index; none: the unconditional model; not given: drawn by training frequency.
        temperature: above 0; below 1 for likelier, less varied images.
        top_k: draw each code from the k likeliest ones only.
        top_p: draw each code from the likeliest ones that together hold this much probability only.
        guidance: above 1 the label counts for more.
        seed: of the random numbers; image i depends on (seed, i) alone.
        batch_size: images made at a time by a process.
        complete: an image file of which `keep` stays and the rest is drawn.
        keep: top, bottom, left or right (a half), or a box LEFT,UPPER,RIGHT,LOWER in pixels.
        resample: a level that is drawn anew with all finer ones, given the coarser codes of `image`.
        image: an image file, for resample.
        keep_fraction: copy this fraction of the images, those that the classifier of evaluate.py is surest of, into a
            folder of their own.
        dtype: auto (bfloat16 where the hardware is fast at it, else float32), float32 or bfloat16.
    """

    run_dir: str
    num_images: int = 16
    label: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    seed: int = 0
    batch_size: int = SAMPLES_AT_A_TIME
    complete: str | None = None
    keep: str = "top"
    resample: str | None = None
    image: str | None = None
    keep_fraction: float | None = None
    dtype: str = "auto"


def main() -> None:
    options = parse_options(Options, __doc__)

    # not at the top: PyTorch comes with them, and --help need not wait
    from vqvae2.evaluation.rejection import classifier_for, keep_best
    from vqvae2.generation.generator import Generator
    from vqvae2.generation.samples import start_from, write_samples
    from vqvae2.run.launch import join_processes

    state = join_processes()
    generator = Generator.from_run(options.run_dir, state.device, options.dtype)
    classifier = None if options.keep_fraction is None else classifier_for(generator, options.keep_fraction)
    written = write_samples(
        generator,
        options.num_images,
        options.label,
        {key: getattr(options, key) for key in ("temperature", "top_k", "top_p", "guidance")},
        options.seed,
        options.batch_size,
        state,
        start_from(generator, options.complete, options.keep, options.resample, options.image),
    )
    grid = written.grid
    if options.keep_fraction is not None and state.is_main_process:
        grid = keep_best(written, classifier, options.keep_fraction)
    state.print(f"samples: {written.grid.parent}; grid: {grid}")


if __name__ == "__main__":
    run(main)
