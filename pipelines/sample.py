"""Sample new images from a trained run or a published model. Run the same command again to resume."""

from dataclasses import dataclass

from vqvae2.config import SAMPLES_AT_A_TIME
from vqvae2.run.command_line import parse_options, run


@dataclass(frozen=True)
class Options:
    """Flags of sample.py.

    Attributes:
        run_dir: directory of a run whose stages have all finished.
        model: instead of run_dir, a bundled model such as mnist, a folder of publish.py, or a repository USER/NAME.
        output: folder of the samples; not given: samples/ in run_dir, or samples/NAME for a model.
        num_images: number of images.
        label: class name or index; none: the unconditional model; not given: drawn with the training frequencies.
        temperature: divides the logits, above 0; values below 1 give more probable, less varied images.
        top_k: sample each code from the k most probable codes.
        top_p: sample each code from the smallest set of most probable codes with at least this total probability.
        guidance: scale of classifier-free guidance; 1: none; larger values follow the label more closely.
        seed: seed of the random numbers; those of image i depend on (seed, i) alone.
        batch_size: images times particles that a process samples at a time.
        complete: an image file; its region `keep` is kept and the rest is sampled.
        keep: the half to keep (top, bottom, left, right), a box LEFT,UPPER,RIGHT,LOWER, or a mask file, white: kept.
        particles: particles per image for `complete`; more than 1, such as 32, also fit codes sampled before kept ones.
        resample: sample this level and all finer levels, given the coarser codes of `image`.
        image: an image file, for `resample`.
        keep_fraction: copy the fraction of each class that evaluate.py's classifier is most confident of to a folder.
        dtype: auto (bfloat16 if the hardware supports it natively, else float32), float32 or bfloat16.
    """

    run_dir: str | None = None
    model: str | None = None
    output: str | None = None
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
    from vqvae2.generation.opening import open_generator, output_folder
    from vqvae2.generation.samples import start_from, write_samples
    from vqvae2.run.launch import join_processes, refusals_reach_all

    state = join_processes()
    complete = (options.complete, options.keep, options.resample, options.image, options.particles)
    with refusals_reach_all(state):
        generator = open_generator(options.run_dir, options.model, state.device, options.dtype)
        classifier = None if options.keep_fraction is None else classifier_for(generator, options.keep_fraction)
        start = start_from(generator, *complete)
    controls = {key: getattr(options, key) for key in ("temperature", "top_k", "top_p", "guidance")}
    numbers = options.num_images, options.label, controls, options.seed, options.batch_size
    folder = output_folder(generator, options.model, "samples", options.output)
    written = write_samples(generator, *numbers, state, start, folder)
    grid = written.grid
    if options.keep_fraction is not None and state.is_main_process:
        grid = keep_best(written, classifier, options.keep_fraction)
    state.print(f"samples: {written.grid.parent}; grid: {grid}")


if __name__ == "__main__":
    run(main)
