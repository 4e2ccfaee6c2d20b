"""Bytes on disk."""

from vqvae2.codes.format import PREFIX, code_type
from vqvae2.config import Config, LevelGrid
from vqvae2.training.checkpoints import KEPT

PAGE = 4096  # bytes of a page of LMDB
PAGE_HEADER = 16
LARGEST_ENTRY = (PAGE - PAGE_HEADER) // 2 - 2  # larger records have pages of their own
SPLIT_IN_HALF = (PAGE - PAGE_HEADER) // 16  # LMDB splits a full page of at least FEW entries up to this size in half
FEW = 20
ENTRY = 8 + 8 + 2  # header, key and pointer of an entry
NAME = 24  # bytes of an image's name, such as n01440764/n01440764_10026.JPEG


def record_bytes(grids: list[LevelGrid]) -> int:
    """Bytes that the codes of an image take in a code store."""
    content = PREFIX.size + NAME + sum(x.height * x.width * code_type(x.codebook_size).itemsize for x in grids)
    if ENTRY + content > LARGEST_ENTRY:
        return -(-(PAGE_HEADER + content) // PAGE) * PAGE + ENTRY + 8
    entry = ENTRY + content + content % 2
    a_page = (PAGE - PAGE_HEADER) // entry
    if entry <= SPLIT_IN_HALF and a_page >= FEW:
        a_page //= 2
    return -(-PAGE // a_page)


def checkpoint_disk_bytes(checkpoint: int, model: int) -> int:
    """Bytes of a stage: the checkpoints that are kept, one that is being written, and the exported model."""
    return (KEPT + 1) * checkpoint + model


def sample_bytes(config: Config, images: int) -> int:
    """Bytes of sampled images before PNG's compression, which depends on the images."""
    height, width = config.images.height_width
    return images * height * width * config.images.channels
