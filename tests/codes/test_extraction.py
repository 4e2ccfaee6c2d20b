"""How stage 2 splits the images over batches and processes."""

import pytest

from vqvae2.codes.extraction import Batches


@pytest.mark.parametrize(
    ("done", "total", "size", "processes"), [(0, 10, 4, 1), (0, 10, 4, 2), (3, 10, 6, 3), (0, 1, 8, 4), (5, 5, 4, 2)]
)
def test_every_image_is_in_one_batch(done: int, total: int, size: int, processes: int):
    """The parts of all processes, put together, are the remaining images in order; the last one pads the last batch."""
    batches = Batches(done, total, size, processes)
    encoded: list[int] = []
    for start in batches.starts:
        parts = [batches.part(start, process) for process in range(processes)]
        assert len({len(part) for part in parts}) == 1 and all(
            [item.batch_index for item in part] == list(range(len(part))) for part in parts
        )
        assert start == len(encoded) + done and 0 < len(parts[0]) <= size // processes
        encoded += [item.index for part in parts for item in part]
    assert encoded[: total - done] == list(range(done, total))
    assert set(encoded[total - done :]) <= {total - 1} and len(encoded) < total - done + processes
