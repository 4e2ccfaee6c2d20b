"""Survey of all image files before training: which files can be read, their sizes and their classes.

The run directory keeps the survey in survey/. Files with an unchanged size and modification time are not decoded
again. Once training has started, the recorded list of files is used even if the folder changes.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae2.config import Config, ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import read_image
from vqvae2.images.folder import Listing, list_images
from vqvae2.images.row_survey import row_surveyor
from vqvae2.images.sources import Splits, open_images
from vqvae2.images.survey_record import File, Survey, describe, read_record, upright_width_height, write_record
from vqvae2.run.directory import recorded_configuration, stage_dir
from vqvae2.run.launch import refusals_reach_all

BATCH = 16  # files that a worker checks at a time


def survey_images(root: Path, images: ImagesConfig, record: Path, frozen: bool, show: bool) -> Survey:
    """Survey a folder or CSV file, or update the survey in `record`.

    Args:
        root: path of a folder of images or of a CSV file.
        images: size, channels, background, workers and max_unreadable_fraction of the images.
        record: path of the JSON file of the survey; a text file with the unreadable files is written next to it.
        frozen: whether training has started, so that the survey in `record` is returned unchanged.
        show: whether to show progress.

    Raises:
        UserError: more than images.max_unreadable_fraction of the files cannot be read.
    """
    former = read_record(record)
    if frozen and former:
        return former
    listing = list_images(root)
    survey = Survey(str(root), listing.classes, listing.ignored, list(_look(root, listing, images, former, show)))
    write_record(survey, images, record)
    return survey


def surveyor(images: ImagesConfig, run_dir: Path, frozen: bool, show: bool) -> Callable[[Path], Listing]:
    """Return a function that surveys a folder into the run's survey/ and lists its readable files.

    Args:
        images: the images section of the configuration.
        run_dir: path of the run directory.
        frozen: whether training has started, so that the recorded list of files is used.
        show: whether to print a summary and show progress.
    """

    def look(root: Path) -> Listing:
        assert images.root is not None  # required by source folder
        record = run_dir / "survey" / ("train.json" if root == Path(images.root) else "validation.json")
        survey = survey_images(root, images, record, frozen, show)
        if show and not frozen:
            print("\n".join(describe(survey, images, record)), flush=True)
        files = survey.readable
        folder = root.parent if root.suffix.lower() == ".csv" else root
        return Listing(survey.classes, [x.label for x in files], [x.name for x in files], folder, survey.ignored)

    return look


def open_surveyed(config: Config, accelerator: Accelerator) -> Splits:
    """Open the images of a run. Once stage 1 has started, they are the files that it was started with.

    The main process makes the survey; the other processes read it.
    """
    frozen = bool(recorded_configuration(stage_dir(config.run_dir, 1)))
    hooks = (config.images, Path(config.run_dir), frozen, accelerator.is_main_process)
    look, sift = surveyor(*hooks), row_surveyor(*hooks)
    splits = None
    with refusals_reach_all(accelerator):
        if accelerator.is_main_process:
            splits = open_images(config.images, config.seed, look, sift)
    with refusals_reach_all(accelerator):
        if splits is None:
            splits = open_images(config.images, config.seed, look, sift)
            _check_readable(splits)
    assert splits is not None
    return splits


def _check_readable(splits: Splits) -> None:
    """Raise a UserError if none of the first images can be read, as on a node without the files."""
    errors = []
    for i in range(min(BATCH, len(splits.train))):
        try:
            splits.train.load(i)
            return
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _look(root: Path, listing: Listing, images: ImagesConfig, former: Survey | None, show: bool) -> Iterator[File]:
    known = {} if former is None else {(x.name, x.bytes, x.changed): x for x in former.files}
    found: dict[str, File] = {}
    fresh = []
    for name, label in zip(listing.names, listing.labels, strict=True):
        size, changed = _stamp(listing.folder / name)
        if file := known.get((name, size, changed)):
            found[name] = File(**{**asdict(file), "label": label})
        else:
            fresh.append(File(name, label, size, changed))
    looks = DataLoader(
        _Files(listing.folder, fresh, images), batch_size=BATCH, num_workers=images.workers, collate_fn=list
    )
    with tqdm(total=len(fresh), desc=f"surveying {root}", unit="file", disable=not show or not fresh) as bar:
        for batch in looks:
            found |= {file.name: file for file in batch}
            bar.update(len(batch))
    return (found[name] for name in listing.names)


class _Files(Dataset):
    def __init__(self, folder: Path, files: list[File], images: ImagesConfig):
        self.folder = folder
        self.files = files
        self.images = images

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> File:
        file = self.files[index]
        path = self.folder / file.name
        try:
            read_image(path, self.images.height_width, self.images.channels, tuple(self.images.background))
            width, height = upright_width_height(path)
        except UserError as error:
            return File(**{**asdict(file), "error": str(error)})
        return File(**{**asdict(file), "width": width, "height": height})


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0  # reading the file then fails, which is recorded as its error
    return status.st_size, status.st_mtime_ns
