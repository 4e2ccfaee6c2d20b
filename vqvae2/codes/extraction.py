"""Extraction of codes: encode every image with the autoencoder and write its codes to a code store."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from tqdm import tqdm

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.codes.format import Codes, Header
from vqvae2.codes.store import CodeStore
from vqvae2.codes.writer import CodeWriter
from vqvae2.errors import StoppedError, UserError
from vqvae2.images.image_sets import ImageSet
from vqvae2.images.loading import load_batches
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.stopping import StopRequests
from vqvae2.training.order import Item


@torch.inference_mode()
def extract_codes(
    autoencoder: Autoencoder,
    images: ImageSet,
    path: Path,
    header: Header,
    batch_size: int,
    workers: int,
    accelerator: Accelerator,
) -> int:
    """Write the codes of `images` to the code store at `path`, resuming after the last image of an interrupted run.

    Each process encodes its part of every batch; the main process gathers and writes the codes.

    Args:
        autoencoder: on the device.
        images: the images to encode.
        path: path of the code store.
        header: header of the code store.
        batch_size: number of images per batch, over all processes.
        workers: number of worker processes that load images in each process.
        accelerator: of all processes.

    Returns:
        The number of images that were encoded in this call.

    Raises:
        UserError: the store cannot be written or was created with different settings, or images cannot be read.
        StoppedError: a signal arrived or the launcher has ended; the codes of all encoded images are written.
    """
    writer, written = None, 0  # only the main process has others
    with refusals_reach_all(accelerator):
        if accelerator.is_main_process and _holds_all(path, header, images.names):
            written = len(images)
        elif accelerator.is_main_process:
            writer = CodeWriter(path, header)
            writer.refuse_other_images(images.names)
            written = writer.written
    done = int(accelerator.reduce(torch.tensor(written, device=accelerator.device)))  # a sum
    batches = Batches(done, len(images), batch_size, accelerator.num_processes)
    mine = (batches.part(start, accelerator.process_index) for start in batches.starts)

    bar = tqdm(
        total=len(images),
        initial=done,
        desc=f"encoding {path.stem}",
        unit="image",
        disable=not accelerator.is_main_process,
    )
    with bar, StopRequests() as requests:
        for start, batch in zip(batches.starts, load_batches(images, mine, workers), strict=True):
            with accelerator.autocast():
                codes = autoencoder.encode(batch.images.to(accelerator.device, non_blocking=True))
            gathered = {name: accelerator.gather(x.contiguous()).cpu() for name, x in codes.items()}
            taken = accelerator.gather(batch.indices.to(accelerator.device)).tolist()
            with refusals_reach_all(accelerator):
                if writer:
                    fresh = min(batch_size, len(images) - start)  # without the repetitions of the last image
                    writer.write(
                        [
                            Codes({name: x[place] for name, x in gathered.items()}, images.labels[i], images.names[i])
                            for place, i in enumerate(taken[:fresh])
                        ]
                    )
                    bar.update(fresh)
                if reason := requests.reason():
                    raise StoppedError(f"{path}: stopped by {reason}; the codes encoded so far are saved")
    with refusals_reach_all(accelerator):
        if writer:
            writer.close()
    return len(images) - done


def _holds_all(path: Path, header: Header, names: Sequence[str]) -> bool:
    """Whether the store holds all images. It is only read, since readers in this process may have it open."""
    try:
        store = CodeStore(path)
        return store.header == header and store[-1].name == names[-1]
    except UserError:  # missing, unfinished or damaged
        return False


class Batches(NamedTuple):
    """The batches of images that remain to be encoded; all processes get the same number of images of each.

    Attributes:
        done: number of images that have been encoded.
        total: number of images.
        size: number of images per batch, over all processes.
        processes: number of processes, which divides `size`.
    """

    done: int
    total: int
    size: int
    processes: int

    @property
    def starts(self) -> range:
        """Index of the first image of each batch."""
        return range(self.done, self.total, self.size)

    def part(self, start: int, process: int) -> list[Item]:
        """A process's part of the batch from `start` on; the last image is repeated to pad the last batch."""
        length = -(-min(self.size, self.total - start) // self.processes)
        first = start + process * length
        return [Item(min(first + i, self.total - 1), 0, i) for i in range(length)]


def open_codes(path: Path, autoencoder_sha256: str, model_path: Path) -> CodeStore:
    """Open the finished code store at `path`.

    Raises:
        UserError: the store is missing, unfinished or damaged, or its codes are not from the autoencoder at
            `model_path`, whose SHA-256 is `autoencoder_sha256`.
    """
    store = CodeStore(path)
    if store.header.autoencoder_sha256 != autoencoder_sha256:
        raise UserError(
            f"{path}: its codes are from another autoencoder than {model_path}: "
            f"delete {path.parent} and run stage 2 again"
        )
    return store
