"""Every image through the autoencoder, its codes into the store."""

from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.codes.format import Codes, Header
from vqvae2.codes.store import CodeStore
from vqvae2.codes.writer import CodeWriter
from vqvae2.errors import StoppedError, UserError
from vqvae2.images.loading import load_batches
from vqvae2.images.sources import ImageSet
from vqvae2.run.launch import refusals_reach_all
from vqvae2.run.stopping import StopRequests
from vqvae2.training.order import in_order


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
    """Write the codes of `images` to the store at `path`, from where an interrupted writer stopped.

    Each process encodes its share of every batch of `batch_size`; the first one gathers and writes.

    Returns:
        How many it wrote.

    Raises:
        StoppedError: a signal asked for it, or the launcher is gone; what was encoded is written.
    """
    with refusals_reach_all(accelerator):
        writer = CodeWriter(path, header) if accelerator.is_main_process else None
    done = torch.tensor(writer.written if writer else 0, device=accelerator.device)
    done = int(accelerator.reduce(done))  # the other processes add nothing
    share = batch_size // accelerator.num_processes
    remaining = list(range(done, len(images)))
    # Each process takes as many images in every batch, so that they meet in the gathering; past the end it
    # takes the last image again.
    padding = -len(remaining) % accelerator.num_processes
    padded = remaining + remaining[-1:] * padding
    batches = [padded[i : i + batch_size] for i in range(0, len(padded), batch_size)]
    mine = []
    for batch in batches:
        part = len(batch) // accelerator.num_processes
        start = accelerator.process_index * part
        mine.append(in_order(batch[start : start + part], share)[0])

    bar = tqdm(
        total=len(images),
        initial=done,
        desc=f"encoding {path.stem}",
        unit="image",
        disable=not accelerator.is_main_process,
    )
    with bar, StopRequests() as requests:
        for indices, batch in zip(batches, load_batches(images, mine, workers), strict=True):
            with accelerator.autocast():
                codes = autoencoder.encode(batch.images.to(accelerator.device, non_blocking=True))
            gathered = {name: accelerator.gather(x.contiguous()).cpu() for name, x in codes.items()}
            taken = accelerator.gather(batch.indices.to(accelerator.device)).tolist()
            with refusals_reach_all(accelerator):
                if writer:
                    fresh = len(set(indices))  # the last one may be there again
                    writer.write(
                        [
                            Codes({name: x[place] for name, x in gathered.items()}, images.labels[i], images.names[i])
                            for place, i in enumerate(taken[:fresh])
                        ]
                    )
                    bar.update(fresh)
                if reason := requests.reason():
                    raise StoppedError(f"{path}: stopped by {reason}; what was encoded is kept")
    with refusals_reach_all(accelerator):
        if writer:
            writer.close()
    return len(remaining)


def open_codes(path: Path, autoencoder_sha256: str, model_path: Path) -> CodeStore:
    """The finished store at `path`, refused where another autoencoder than the one at `model_path` made it."""
    store = CodeStore(path)
    if store.header.autoencoder_sha256 != autoencoder_sha256:
        raise UserError(
            f"{path} holds the codes of another autoencoder than {model_path}: "
            f"delete {path.parent} and run stage 2 again"
        )
    return store
