"""Survey of the rows of a data set of the `datasets` library before training, recorded as that of a folder."""

from pathlib import Path

from torch.utils.data import Dataset

from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.images.decode import decode_image
from vqvae2.images.huggingface import Rows
from vqvae2.images.sources import Sift
from vqvae2.images.survey_record import File, Survey, read_record, record_path, upright_width_height, write_record
from vqvae2.images.survey_work import from_main, look_at, merged, part_of
from vqvae2.run.launch import ALONE, Together


def row_surveyor(images: ImagesConfig, run_dir: Path, show: bool) -> Sift:
    """Return a function that returns the readable rows of a part in the run's survey, or surveys it if there is none.

    Args:
        images: the images section of the configuration.
        run_dir: path of the run directory.
        show: whether to show progress.
    """

    def sift(rows: Rows, part: str) -> list[int]:
        return survey_rows(rows, images, record_path(run_dir, part), frozen=True, show=show).readable.tolist()

    return sift


def survey_rows(
    rows: Rows, images: ImagesConfig, record: Path, frozen: bool, show: bool, processes: Together = ALONE
) -> Survey:
    """Decode every row, and write the survey to `record`.

    Every process checks its part of the rows, and the main process writes the record.

    Args:
        rows: the rows.
        images: size, channels, background, workers and max_unreadable_fraction of the images.
        record: path of the survey's record; a text file with the unreadable rows is written next to it.
        frozen: whether training has started, so that the survey in `record` is returned unchanged.
        show: whether to show progress.
        processes: the processes that share the work.

    Raises:
        UserError: more than images.max_unreadable_fraction of the rows cannot be read, or the data set has other rows
            than those that training was started with.
    """
    former = read_record(record)
    if frozen and former:
        if not (former.names.same_as(rows.names) and former.columns["label"].tolist() == rows.labels.tolist()):
            raise UserError(
                f"{rows.title}: its rows are not those that this run was started with ({record}): restore them, or "
                "start a new run with another run_dir"
            )
        return former
    part = part_of(len(rows), processes)
    files = look_at(_Looks(rows, images), part, images.workers, rows.title, show)
    survey = merged(Survey.of(rows.title, rows.classes, 0, files), rows.names, processes)
    from_main(lambda: write_record(survey, images, record), processes)
    return survey


class _Looks(Dataset[File]):
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
            return row._replace(error=str(error))
        return row._replace(bytes=len(file) if isinstance(file, bytes) else 0, width=width, height=height)
