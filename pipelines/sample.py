"""Sample new images from a trained run to its samples/ folder. Run the same command again to resume."""

from dataclasses import dataclass

from vqvae2.config import SAMPLES_AT_A_TIME
from vqvae2.run.command_line import parse_options, run


@dataclass(frozen=True)
class Options:
    """Flags of sample.py.

    Attributes:
        run_dir: directory of a run whose stages have all finished.
        num_images: number of images.
        label: class name or index; none: the unconditional model; not given: drawn with the training frequencies.
        temperature: divides the logits, above 0; values below 1 give more probable, less varied images.
        top_k: sample each code from the k most probable codes.
        top_p: sample each code from the smallest set of most probable codes with at least this total probability.
        guidance: scale of classifier-free guidance; 1: none; larger values follow the label more closely.
        seed: seed of the random numbers; those of image i depend on (seed, i) alone.
        batch_size: images times particles that a process samples at a time.
        complete: an image file; its region `keep` is kept and the rest is sampled.
        keep: the half to keep (top, bottom, left or right), a box LEFT,UPPER,RIGHT,LOWER in pixels, or an image file, a
            mask of the picture's size or the run's that is white where the picture is kept.
        particles: particles per image for `complete`; more than 1, such as 32, also fit codes sampled before kept ones.
        resample: sample this level and all finer levels, given the coarser codes of `image`.
        image: an image file, for `resample`.
        keep_fraction: copy the fraction of each class that evaluate.py's classifier is most confident of to a folder.
        dtype: auto (bfloat16 if the hardware supports it natively, else float32), float32 or bfloat16.
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
    particles: int = 1
    resample: str | None = None
    image: str | None = None
    keep_fraction: float | None = None
    dtype: str = "auto"


def main() -> None:
    options = parse_options(Options, __doc__)

    # not at the top: PyTorch slows --help down
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
        start_from(generator, options.complete, options.keep, options.resample, options.image, options.particles),
    )
    grid = written.grid
    if options.keep_fraction is not None and state.is_main_process:
        grid = keep_best(written, classifier, options.keep_fraction)
    state.print(f"samples: {written.grid.parent}; grid: {grid}")


if __name__ == "__main__":
    run(main)
