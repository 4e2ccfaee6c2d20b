"""Survey of all image files before training: which files can be read, their sizes and their classes.

The run directory keeps the survey in survey/. Files with an unchanged size and modification time are not decoded
again. Once training has started, the recorded list of files is used even if the folder changes.
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae2.config import Config, ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import read_image
from vqvae2.images.folder import Listing, list_images
from vqvae2.images.sources import Splits, open_images
from vqvae2.run.directory import make_dir, recorded_configuration, stage_dir, write_atomically
from vqvae2.run.launch import refusals_reach_all

BATCH = 16  # files that a worker checks at a time
TURNED = range(5, 9)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112


@dataclass(frozen=True)
class File:
    """The record of one image file.

    Attributes:
        name: path relative to the folder.
        label: class index, -1 if there are no classes.
        bytes: file size at the time of the survey.
        changed: modification time at the time of the survey, in nanoseconds.
        width: width of the upright image in pixels, 0 if the file cannot be read.
        height: height of the upright image in pixels, 0 if the file cannot be read.
        error: reason why the file cannot be read; None if it can be read.
    """

    name: str
    label: int
    bytes: int = 0
    changed: int = 0
    width: int = 0
    height: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Survey:
    """The survey of a folder or CSV file.

    Attributes:
        root: path of the folder or CSV file.
        classes: names of the classes, in the order of the labels.
        ignored: number of files that are not images.
        files: all image files, readable or not.
    """

    root: str
    classes: list[str]
    ignored: int
    files: list[File]

    @property
    def readable(self) -> list[File]:
        """The files that can be read, which are used."""
        return [file for file in self.files if file.error is None]

    @property
    def unreadable(self) -> list[File]:
        """The files that cannot be read, which are skipped."""
        return [file for file in self.files if file.error is not None]


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
    former = _read(record)
    if frozen and former:
        return former
    listing = list_images(root)
    survey = Survey(str(root), listing.classes, listing.ignored, list(_look(root, listing, images, former, show)))
    make_dir(record.parent)
    write_atomically(record, json.dumps(asdict(survey), indent=0).encode())
    listed = record.with_name(f"{record.stem}_unreadable.txt")
    lines = [f"{file.name}\t{file.error}\n" for file in survey.unreadable]
    write_atomically(listed, "".join(lines).encode("utf-8", "surrogateescape"))
    share = len(survey.unreadable) / len(survey.files)
    if share > images.max_unreadable_fraction or not survey.readable:
        raise UserError(
            f"{root}: {len(survey.unreadable)} of {len(survey.files)} files cannot be read, more than "
            f"images.max_unreadable_fraction: {images.max_unreadable_fraction}; they are listed in {listed}: "
            "repair or remove them, or increase images.max_unreadable_fraction"
        )
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
    look = surveyor(config.images, Path(config.run_dir), frozen, accelerator.is_main_process)
    splits = None
    with refusals_reach_all(accelerator):
        if accelerator.is_main_process:
            splits = open_images(config.images, config.seed, look)
    return splits or open_images(config.images, config.seed, look)


def describe(survey: Survey, images: ImagesConfig, record: Path) -> list[str]:
    """Return the lines of the summary that is printed for the user."""
    files = survey.readable
    height, width = images.height_width
    small = sum(file.width < width or file.height < height for file in files)
    counts = Counter(file.label for file in files)
    lines = [
        f"{survey.root}: {len(files)} images, {min(file.width for file in files)}x{min(file.height for file in files)} "
        f"to {max(file.width for file in files)}x{max(file.height for file in files)} pixels, "
        f"median {median(file.width for file in files):.0f}x{median(file.height for file in files):.0f}"
    ]
    if survey.classes:
        shown = ", ".join(f"{name} {counts[i]}" for i, name in enumerate(survey.classes[:20]))
        lines.append(f"{len(survey.classes)} classes: {shown}{', ...' if len(survey.classes) > 20 else ''}")
    lines += [f"warning: class {name} has one image" for i, name in enumerate(survey.classes) if counts[i] == 1]
    lines += [f"warning: class {name} has no readable image" for i, name in enumerate(survey.classes) if not counts[i]]
    if small:
        lines.append(f"{small} of them are smaller than {width}x{height} pixels and are upscaled")
    if survey.ignored:
        lines.append(f"{survey.ignored} files that are not images are ignored")
    if survey.unreadable:
        listed = record.with_name(f"{record.stem}_unreadable.txt")
        lines.append(f"warning: {len(survey.unreadable)} files cannot be read and are skipped; listed in {listed}")
    return lines


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
            with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(ORIENTATION) in TURNED
        except UserError as error:
            return File(**{**asdict(file), "error": str(error)})
        width, height = (height, width) if turned else (width, height)
        return File(**{**asdict(file), "width": width, "height": height})


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0  # reading the file then fails, which is recorded as its error
    return status.st_size, status.st_mtime_ns


def _read(record: Path) -> Survey | None:
    try:
        content = json.loads(record.read_text())
        return Survey(**{**content, "files": [File(**file) for file in content["files"]]})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: the survey is made again
