"""Publish a finished run: upload its models with a model card to the Hugging Face Hub, or save them to a folder."""

from dataclasses import dataclass

from vqvae2.errors import UserError
from vqvae2.run.command_line import parse_options, run


@dataclass(frozen=True)
class Options:
    """Flags of publish.py.

    Attributes:
        run_dir: directory of a run whose stages have all finished.
        repository: repository to upload to, USER/NAME; it is created if it does not exist.
        folder: folder to save to instead: a new or empty one, or one with an earlier export.
        dtype: precision of the saved priors: float32 or bfloat16 (half the size); the autoencoder stays in float32.
        license: identifier of the license, such as mit, for the model card.
        private: whether a repository that is created is private: true or false.
    """

    run_dir: str
    repository: str | None = None
    folder: str | None = None
    dtype: str | None = None
    license: str | None = None
    private: bool = False


def main() -> None:
    options = parse_options(Options, __doc__)
    if (options.repository is None) == (options.folder is None):
        raise UserError("repository, folder: give one of them: --repository USER/NAME or --folder FOLDER")
    if options.private and options.repository is None:
        raise UserError("private: true has no effect on a folder: leave it out")

    from vqvae2.generation.generator import Generator  # not at the top: importing PyTorch slows --help down

    generator = Generator.from_run(options.run_dir, "cpu", "float32")
    common = {"dtype": options.dtype, "license": options.license}
    if options.folder is not None:
        generator.save_pretrained(options.folder, **common)
        print(f"model: {options.folder}")
    else:
        print(f"model: {generator.push_to_hub(options.repository, options.private, **common)}")


if __name__ == "__main__":
    run(main)
