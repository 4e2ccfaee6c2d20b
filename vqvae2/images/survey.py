"""Survey of all image files before training: which files can be read, their sizes and their classes.

The run directory keeps the survey in survey/. Readable files with an unchanged size and modification time are not
decoded again. Once training has started, the recorded list of files is used even if the folder changes.
"""

import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import Dataset

from vqvae2.config import Config, ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import read_image
from vqvae2.images.folder import Listing, list_images
from vqvae2.images.huggingface import open_rows
from vqvae2.images.image_sets import Splits
from vqvae2.images.row_survey import row_surveyor, survey_rows
from vqvae2.images.sources import open_images
from vqvae2.images.survey_record import (
    File,
    Survey,
    read_record,
    record_path,
    upright_width_height,
    write_record,
)
from vqvae2.images.survey_summary import describe
from vqvae2.images.survey_work import BATCH, from_main, look_at, main_first, merged, part_of
from vqvae2.run.directory import recorded_configuration, stage_dir
from vqvae2.run.launch import ALONE, Together, refusals_reach_all
from vqvae2.run.nodes import check_same_view

CHANGED = -1  # place of a file that the former survey lacks or that has changed


def survey_images(
    root: Path, images: ImagesConfig, record: Path, frozen: bool, show: bool, processes: Together = ALONE
) -> Survey:
    """Survey a folder or CSV file, or update the survey in `record`.

    The main process lists the files, every process checks its part of them, and the main process writes the record.

    Args:
        root: path of a folder of images or of a CSV file.
        images: size, channels, background, workers and max_unreadable_fraction of the images.
        record: path of the survey's record; a text file with the unreadable files is written next to it.
        frozen: whether training has started, so that the survey in `record` is returned unchanged.
        show: whether to show progress.
        processes: the processes that share the work.

    Raises:
        UserError: more than images.max_unreadable_fraction of the files cannot be read.
    """
    former = read_record(record)
    if frozen and former:
        return former
    listing = from_main(lambda: list_images(root), processes)
    files = _look(root, listing, part_of(len(listing.names), processes), images, former, show)
    mine = Survey.of(str(root), listing.classes, listing.ignored, files)
    survey = merged(mine, listing.names, processes)
    from_main(lambda: write_record(survey, images, record), processes)
    return survey


def surveyor(images: ImagesConfig, run_dir: Path, show: bool) -> Callable[[Path], Listing]:
    """Return a function that lists the readable files of a folder in the run's survey, or surveys it if there is none.

    Args:
        images: the images section of the configuration.
        run_dir: path of the run directory.
        show: whether to show progress.
    """

    def look(root: Path) -> Listing:
        survey = survey_images(root, images, _record(root, images, run_dir), frozen=True, show=show)
        labels = array("i", survey.of_readable("label").tobytes())
        folder = root.parent if root.suffix.lower() == ".csv" else root
        return Listing(survey.classes, labels, survey.readable_names, folder, survey.ignored)

    return look


def open_surveyed(config: Config, accelerator: Accelerator) -> Splits:
    """Open the images of a run. Once stage 1 has started, they are the files that it was started with.

    All processes make the survey, and then read it; the main process is the first, since it may have to download.
    """
    images, run_dir, show = config.images, Path(config.run_dir), accelerator.is_main_process
    if from_main(lambda: not recorded_configuration(stage_dir(config.run_dir, 1)), accelerator):
        for survey, record in _survey_all(images, run_dir, accelerator):
            accelerator.print("\n".join(describe(survey, images, record)), flush=True)
            check_same_view(record.parent, [record.name], accelerator)  # or another node would check all files alone
    look, sift = surveyor(images, run_dir, show), row_surveyor(images, run_dir, show)
    splits = main_first(lambda: open_images(images, config.seed, look, sift), accelerator)
    with refusals_reach_all(accelerator):
        if not accelerator.is_main_process:
            _check_readable(splits)
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
        reason = f"none of the first {len(errors)} images can be read"
        raise UserError(f"{reason}: put the images where every node can read them ({errors[0]})")


def _survey_all(images: ImagesConfig, run_dir: Path, accelerator: Accelerator) -> Iterator[tuple[Survey, Path]]:
    """Make or update the surveys of all parts of the images, together; yield each and the path of its record."""
    show = accelerator.is_main_process
    if images.source == "folder":
        for root in (images.root, images.validation_root):
            if root is not None:
                record = _record(Path(root), images, run_dir)
                yield survey_images(Path(root), images, record, False, show, accelerator), record
    elif images.source.startswith("huggingface"):
        opened = main_first(lambda: open_rows(images), accelerator)
        for part, rows in zip(("train", "validation"), opened, strict=True):
            if rows is not None:
                record = record_path(run_dir, part)
                yield survey_rows(rows, images, record, False, show, accelerator), record


def _record(root: Path, images: ImagesConfig, run_dir: Path) -> Path:
    assert images.root is not None  # required by source folder
    return record_path(run_dir, "train" if root == Path(images.root) else "validation")


def _look(
    root: Path, listing: Listing, part: range, images: ImagesConfig, former: Survey | None, show: bool
) -> Iterator[File]:
    """Yield the records of a part of the files, those of unchanged files from the former survey."""
    places = array("q", _unchanged(listing, part, former) if former else [CHANGED] * len(part))
    fresh = array("q", (index for index, place in zip(part, places, strict=True) if place == CHANGED))
    found = look_at(_Files(listing, images), fresh, images.workers, str(root), show)
    for index, place in zip(part, places, strict=True):
        if former is None or place == CHANGED:
            yield next(found)
        else:
            yield former[place]._replace(label=listing.labels[index])


def _unchanged(listing: Listing, part: range, former: Survey) -> Iterator[int]:
    """Yield the place of each file in the former survey, which is sorted as well, or CHANGED.

    Files that could not be read count as changed: permissions and file systems change without a trace in the file.
    """
    place, unreadable = 0, set(former.unreadable.tolist())
    for index in part:
        name = listing.names[index]
        while place < len(former) and former.names[place] < name:
            place += 1
        known = place < len(former) and former.names[place] == name
        stamp = (former.columns["bytes"][place], former.columns["changed"][place]) if known else None
        same = known and place not in unreadable and _stamp(f"{listing.folder}/{name}") == stamp
        yield place if same else CHANGED


class _Files(Dataset[File]):
    def __init__(self, listing: Listing, images: ImagesConfig):
        self.listing = listing
        self.images = images

    def __len__(self) -> int:
        return len(self.listing.names)

    def __getitem__(self, index: int) -> File:
        name = self.listing.names[index]
        path = self.listing.folder / name
        file = File(name, self.listing.labels[index], *_stamp(path))
        try:
            read_image(path, self.images.height_width, self.images.channels, tuple(self.images.background))
            width, height = upright_width_height(path)
        except UserError as error:
            return file._replace(error=str(error))
        return file._replace(width=width, height=height)


def _stamp(path: Path | str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0  # reading the file then fails, which is recorded as its error
    return status.st_size, status.st_mtime_ns
