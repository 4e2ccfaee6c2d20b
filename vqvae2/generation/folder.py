"""Reconstruct every image of a folder and write the images and a table of their metrics."""

import csv
import hashlib
import io
import json
import os
import shutil
import sys
from bisect import bisect_left
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from torch import Tensor, stack
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae2.config import SAMPLES_AT_A_TIME
from vqvae2.errors import StoppedError, UserError
from vqvae2.generation.controls import NO_CLASS, NoClass
from vqvae2.generation.generator import Generator
from vqvae2.generation.reconstruction import Reconstructions
from vqvae2.generation.samples import short_name
from vqvae2.images.decode import EXTENSIONS, read_image
from vqvae2.images.folder import files_below
from vqvae2.images.grids import save_grid, save_image
from vqvae2.run.directory import make_dir, read_record, write_atomically, writing
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.lock import locked_by_main
from vqvae2.run.stopping import StopRequests, ignore_stop_signals

MADE_OF = "made_of.json"
TABLE = "images.csv"
PICTURES = "pictures"
LONGEST_NAME = 255 - len("-01234567.partial.png")  # bytes of a file name, to which a hash and a suffix are added
PARTS = "parts"  # the rows of each finished batch, until the table is written


class Work(NamedTuple):
    """What is reconstructed, and where it is written.

    Attributes:
        images: folder of the images.
        names: paths of the images, relative to `images`, sorted.
        labels: class index of each image, NO_CLASS without one; None: the model has no classes.
        output: folder to write to.
        beside: whether each file also shows the original and the image of the coarsest codes alone.
    """

    images: Path
    names: list[str]
    labels: list[int | NoClass] | None
    output: Path
    beside: bool


def reconstruct_folder(
    generator: Generator,
    images: Path,
    state: PartialState,
    output: Path,
    beside: bool = False,
    workers: int = 2,
) -> Path:
    """Write the reconstruction of each image of a folder to pictures/ and a row of each to images.csv.

    The picture of NAME is NAME.png; if NAME is too long for that, its end is replaced by a hash.
    The batches are distributed over the processes. A batch that is finished is skipped when the same command runs
    again; changed images or other weights start over. Files that cannot be read are listed in unreadable.txt.

    Args:
        generator: generator of a saved model, or of a run whose stage 1 has finished.
        images: folder of the images, also in subfolders; a first folder that is named as a class gives the label.
        state: state of the processes.
        output: folder to write to.
        beside: show the original and the image of the coarsest codes alone to the left of each reconstruction.
        workers: processes that load images, in each process.

    Returns:
        The path of images.csv, sorted by likelihood, the least likely image first.

    Raises:
        UserError: the folder has no images, the output folder cannot be used or has the reconstructions of another
            folder or of another saved model, or no image can be read.
        StoppedError: a signal was received or the launcher has ended; finished batches are saved.
    """
    with refusals_reach_all(state):
        names = list_names(images, output)
        work = Work(images, names, labels_of(generator, names), output, beside)
        if state.is_main_process:
            _check_output(output)
    with locked_by_main(output, state):
        with refusals_reach_all(state):
            if state.is_main_process:
                _begin(generator, work)
        if (output / TABLE).exists():
            state.print(f"{output}: finished before; delete the folder to reconstruct the images again")
            return output / TABLE
        with refusals_reach_all(state):
            _write_batches(generator, work, state, workers)
        with refusals_reach_all(state):
            if state.is_main_process:
                _write_table(generator, work)
    return output / TABLE


def list_names(images: Path, output: Path) -> list[str]:
    """Sorted paths, relative to `images`, of all images in it and its subfolders.

    Raises:
        UserError: the folder is missing or has no images, or one of it and `output` is inside the other.
    """
    if not images.is_dir():
        raise UserError(f"{images}: no such folder: give an existing folder of images")
    if output.resolve().is_relative_to(images.resolve()):
        raise UserError(f"{output}: inside the folder of the images, {images}: give another --output")
    if images.resolve().is_relative_to(output.resolve()):
        raise UserError(f"{images}: inside the folder of the output, {output}: give another --output")
    names = sorted(name for name in files_below(images) if Path(name).suffix.lower() in EXTENSIONS)
    if not names:
        raise UserError(
            f"{images}: contains no images: give another folder "
            f"(supported: {', '.join(sorted(EXTENSIONS))}, also in subfolders)"
        )
    return names


def labels_of(generator: Generator, names: list[str]) -> list[int | NoClass] | None:
    """Class index of each image: that of the class named as its first folder, else NO_CLASS.

    Raises:
        UserError: an image has no class, and there is no unconditional model.
    """
    if not generator.classes:
        return None
    first = [Path(name).parts[0] if "/" in name else "" for name in names]
    index = {name: i for i, name in enumerate(generator.classes)}
    labels: list[int | NoClass] = [index.get(name, NO_CLASS) for name in first]
    if NO_CLASS in labels and generator.reason_without_priors is None and not generator.has_unconditional_model:
        raise UserError(
            f"{names[labels.index(NO_CLASS)]}: in no folder named as a class, and the priors were trained with "
            f"label_dropout 0: put the images into folders of their classes ({', '.join(generator.classes[:10])})"
        )
    return labels


def _check_output(output: Path) -> None:
    if output.exists() and not (output / MADE_OF).exists():
        if not output.is_dir():
            raise UserError(f"{output}: not a folder: give another --output")
        if any(path.name != "lock" for path in output.iterdir()):
            raise UserError(f"{output}: has files that are not reconstructions: give another --output")


def _begin(generator: Generator, work: Work) -> None:
    """Delete what was made of other inputs and what lacks images, and record the inputs.

    Raises:
        UserError: the output folder has the reconstructions of another folder of images, or those of another model
            where the model is a saved one, which does not change.
    """
    inputs = _made_of(generator, work)
    record = work.output / MADE_OF
    recorded = {"pixel_variance": inputs["pixel_variance"]} | read_record(record)  # earlier versions did not write it
    if recorded.get("images", inputs["images"]) != inputs["images"]:
        raise UserError(
            f"{work.output}: has the reconstructions of {recorded['images']}: give another --output, or delete it"
        )
    if generator.run_dir is None and recorded.get("weights", inputs["weights"]) != inputs["weights"]:
        raise UserError(f"{work.output}: has the reconstructions of another model: give another --output, or delete it")
    with writing(work.output):
        if record.exists() and recorded != inputs:
            print(f"{work.output}: images, model or options have changed: starting over", flush=True)
            write_atomically(record, b"{}")  # a deletion that is interrupted goes on with the next start
            for name in (PICTURES, PARTS):
                shutil.rmtree(work.output / name, ignore_errors=True)
            (work.output / TABLE).unlink(missing_ok=True)
        files = _Files(generator, work)
        for part in (work.output / PARTS).glob("*.json"):
            failed = json.loads(part.read_text())["unreadable"]
            if any(not isinstance(files[bisect_left(work.names, name)], str) for name in failed):
                part.unlink()  # a file has become readable
    write_atomically(record, json.dumps(inputs, indent=2).encode())
    make_dir(work.output / PARTS)


def _made_of(generator: Generator, work: Work) -> dict[str, Any]:
    files = hashlib.sha256()
    for name in work.names:
        try:
            status = (work.images / name).stat()
        except OSError:  # reading the file then fails, which is listed
            stamp = None
        else:
            stamp = (status.st_size, status.st_mtime_ns)
        files.update(f"{name}\0{stamp}\n".encode("utf-8", "surrogateescape"))
    return {
        "weights": generator.fingerprint(priors=generator.reason_without_priors is None),
        "pixel_variance": generator.pixel_variance,
        "dtype": str(generator.dtype),
        "images": str(work.images.resolve()),
        "files": files.hexdigest(),
        "beside": work.beside,
    }


class _Files(Dataset):
    """Maps an index to the image, uint8 (C, H, W), or to the reason why it cannot be read."""

    def __init__(self, generator: Generator, work: Work):
        self.background = generator.background
        self.size, self.channels = generator.height_width, generator.channels
        self.paths = [work.images / name for name in work.names]

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return read_image(self.paths[index], self.size, self.channels, self.background)
        except UserError as error:
            return str(error)


def _write_batches(generator: Generator, work: Work, state: PartialState, workers: int) -> None:
    """Reconstruct this process's share of the batches that are not finished."""
    every = range(0, len(work.names), SAMPLES_AT_A_TIME)
    parts = {start: work.output / PARTS / f"{start:09d}.json" for start in every}
    mine = [start for start in list(every)[state.process_index :: state.num_processes] if not parts[start].exists()]
    batches = [list(range(x, min(x + SAMPLES_AT_A_TIME, len(work.names)))) for x in mine]
    loader = DataLoader(
        _Files(generator, work),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=ignore_stop_signals,
    )
    total = sum(len(batch) for batch in batches)
    bar = tqdm(total=total, desc="reconstructing", unit="image", disable=not state.is_main_process)
    with bar, StopRequests() as requests:
        for start, batch, loaded in zip(mine, batches, loader, strict=True):
            rows = _write_batch(generator, work, batch, loaded)
            write_atomically(parts[start], json.dumps(rows).encode())
            bar.update(len(batch))
            if reason := requests.reason():
                raise StoppedError(f"{work.output}: stopped by {reason}; finished batches are saved")


def _write_batch(generator: Generator, work: Work, batch: list[int], loaded: list[Tensor | str]) -> dict[str, Any]:
    """Write the images of a batch; return its rows and its unreadable files."""
    failed = {work.names[i]: x for i, x in zip(batch, loaded, strict=True) if isinstance(x, str)}
    read = {i: x for i, x in zip(batch, loaded, strict=True) if not isinstance(x, str)}
    if not read:
        return {"rows": [], "unreadable": failed}
    originals = stack(list(read.values()))
    labels = None if work.labels is None else [work.labels[i] for i in read]
    made = generator.reconstruct(originals, labels)
    with writing(work.output):
        for place, i in enumerate(read):
            path = picture_path(work.output, work.names[i])
            beside = path.with_suffix(".partial.png")
            if work.beside:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_grid(stack([originals[place], made.coarsest[place], made.images[place]]), beside, columns=3)
            else:
                save_image(made.images[place], beside)
            os.replace(beside, path)
    return {"rows": rows_of(made, [work.names[i] for i in read]), "unreadable": failed, "reason": made.reason}


def picture_path(output: Path, name: str) -> Path:
    """Path of the reconstruction of the image `name`, whose file name is shortened if it is long."""
    path = output / PICTURES / name
    return path.with_name(f"{short_name(path.name, LONGEST_NAME)}.png")


def rows_of(made: Reconstructions, names: list[str]) -> list[dict[str, Any]]:
    """Rows of images.csv; a value that is not known is None."""
    nats = {} if made.likelihood is None else made.likelihood.nats
    columns: dict[str, Tensor | None] = {"mse": made.mse, "psnr": made.psnr, "ssim": made.ssim}
    columns |= {f"nats_{level}": x for level, x in nats.items()}
    columns |= {"bits_per_dimension": made.likelihood and made.likelihood.bits_per_dimension, "bytes": made.bytes}
    return [
        {"name": name, **{key: None if x is None else float(x[i]) for key, x in columns.items()}}
        for i, name in enumerate(names)
    ]


def _write_table(generator: Generator, work: Work) -> None:
    """Write images.csv and unreadable.txt from the parts, and delete the parts."""
    parts = [json.loads(path.read_text()) for path in sorted((work.output / PARTS).glob("*.json"))]
    rows = sorted((row for part in parts for row in part["rows"]), key=_surprise, reverse=True)
    unreadable = {name: error for part in parts for name, error in part["unreadable"].items()}
    listed = work.output / "unreadable.txt"
    lines = [f"{name}\t{error}\n" for name, error in unreadable.items()]
    write_atomically(listed, "".join(lines).encode("utf-8", "surrogateescape"))
    if not rows:
        raise UserError(
            f"{work.images}: none of {len(unreadable)} files can be read: see the reasons in {listed}, or give another "
            "folder"
        )
    if unreadable:
        print(f"warning: {len(unreadable)} files cannot be read and are skipped; listed in {listed}", file=sys.stderr)
    if reason := next((part["reason"] for part in parts if part.get("reason")), None):
        print(f"{TABLE} has empty columns: {reason}", flush=True)
    levels = [f"nats_{level}" for level in generator.autoencoder.names]
    columns = ["name", "mse", "psnr", "ssim", *levels, "bits_per_dimension", "bytes"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows)
    write_atomically(work.output / TABLE, text.getvalue().encode("utf-8", "surrogateescape"))
    shutil.rmtree(work.output / PARTS, ignore_errors=True)


def _surprise(row: dict[str, Any]) -> tuple[float, float]:
    """Bits per dimension of an image, else bytes of its codes, else its error; larger is less likely."""
    first = row["bits_per_dimension"] if row["bits_per_dimension"] is not None else row["bytes"]
    return (first if first is not None else 0.0, row["mse"])
