"""The flags --run_dir and --model, which name the trained models that a script uses."""

from pathlib import Path

import torch

from vqvae2.errors import UserError
from vqvae2.generation.generator import Generator
from vqvae2.generation.hub import is_repository


def open_generator(
    run_dir: str | None, model: str | None, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> Generator:
    """Load the models that the flags name.

    Args:
        run_dir: directory of a run, see `Generator.from_run`.
        model: a bundled model, folder or repository, see `Generator.from_pretrained`.
        device: device to compute on.
        dtype: auto, float32 or bfloat16.

    Raises:
        UserError: none or both are given, or the models cannot be loaded.
    """
    if (run_dir is None) == (model is None):
        raise UserError("run_dir, model: give one of them: --run_dir for a run, --model for a published model")
    if run_dir is not None:
        return Generator.from_run(run_dir, device, dtype)
    assert model is not None
    return Generator.from_pretrained(model, device=device, dtype=dtype)


def output_folder(generator: Generator, model: str | None, kind: str, output: str | None = None) -> Path:
    """The folder for files made with the models; by default RUN/kind, or kind/NAME in the current directory.

    Args:
        generator: result of `open_generator`.
        model: the flag --model; NAME is the last part of it.
        kind: name of the default folder, such as samples.
        output: the folder that the user chose; None: the default.
    """
    if output is not None:
        return Path(output)
    if generator.run_dir is not None:
        return generator.run_dir / kind
    assert model is not None
    return Path(kind) / Path(model).expanduser().resolve().name


def reconstructions_folder(generator: Generator, model: str | None, images: Path, output: str | None = None) -> Path:
    """The folder for reconstructions; by default RUN/reconstructions/IMAGES, or reconstructions/MODEL/IMAGES.

    MODEL is USER/NAME for a repository, so that models of several users are apart, else as for `output_folder`.

    Args:
        generator: result of `open_generator`.
        model: the flag --model.
        images: folder of the images; IMAGES is its name.
        output: the folder that the user chose; None: the default.
    """
    if output is not None:
        return Path(output)
    folder = output_folder(generator, model, "reconstructions")
    if model is not None and is_repository(model):
        folder = folder.parent / Path(model).parent / folder.name
    return folder / images.resolve().name
