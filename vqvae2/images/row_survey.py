"""Survey of the rows of a data set of the `datasets` library before training, recorded as that of a folder."""

from dataclasses import replace
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import decode_image
from vqvae2.images.huggingface import Rows
from vqvae2.images.sources import Sift
from vqvae2.images.survey_record import File, Survey, describe, read_record, upright_width_height, write_record

BATCH = 16  # rows that a worker checks at a time


def row_surveyor(images: ImagesConfig, run_dir: Path, frozen: bool, show: bool) -> Sift:
    """Return a function that surveys the rows of a part into the run's survey/ and returns the readable ones.

    Args:
        images: the images section of the configuration.
        run_dir: path of the run directory.
        frozen: whether training has started, so that the recorded list of rows is used.
        show: whether to print a summary and show progress.
    """

    def sift(rows: Rows, part: str) -> list[int]:
        record = run_dir / "survey" / f"{part}.json"
        survey = survey_rows(rows, images, record, frozen, show)
        if show and not frozen:
            print("\n".join(describe(survey, images, record)), flush=True)
        return [i for i, file in enumerate(survey.files) if file.error is None]

    return sift


def survey_rows(rows: Rows, images: ImagesConfig, record: Path, frozen: bool, show: bool) -> Survey:
    """Decode every row, and write the survey to `record`.

    Args:
        rows: the rows.
        images: size, channels, background, workers and max_unreadable_fraction of the images.
        record: path of the JSON file of the survey; a text file with the unreadable rows is written next to it.
        frozen: whether training has started, so that the survey in `record` is returned unchanged.
        show: whether to show progress.

    Raises:
        UserError: more than images.max_unreadable_fraction of the rows cannot be read, or the data set has other rows
            than those that training was started with.
    """
    former = read_record(record)
    if frozen and former:
        if [(x.name, x.label) for x in former.files] != list(zip(rows.names, rows.labels, strict=True)):
            raise UserError(
                f"{rows.title}: its rows are not those that this run was started with ({record}): restore them, or "
                "start a new run with another run_dir"
            )
        return former
    looks = DataLoader(_Looks(rows, images), batch_size=BATCH, num_workers=images.workers, collate_fn=list)
    files: list[File] = []
    with tqdm(total=len(rows), desc=f"surveying {rows.title}", unit="file", disable=not show) as bar:
        for batch in looks:
            files += batch
            bar.update(len(batch))
    survey = Survey(rows.title, rows.classes, 0, files)
    write_record(survey, images, record)
    return survey


class _Looks(Dataset):
    def __init__(self, rows: Rows, images: ImagesConfig):
        self.rows = rows
        self.images = images

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> File:
        rows, images = self.rows, self.images
        row = File(rows.names[index], rows.labels[index])
        try:
            file = rows.file(index)
            name, colour = rows.where(index), tuple(images.background)
            decode_image(file, name, images.height_width, images.channels, colour)
            width, height = upright_width_height(file)
        except UserError as error:
            return replace(row, error=str(error))
        return replace(row, bytes=len(file) if isinstance(file, bytes) else 0, width=width, height=height)
