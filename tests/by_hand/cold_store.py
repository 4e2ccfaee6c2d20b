"""Random reads by the priors' loader from a code store that is larger than the page cache it is given.

    python -m tests.by_hand.cold_store --records 200000 --memory_mb 700 --seconds 10 --folder /tmp/cold_store

writes a store of records of 5,120 codes (32x32 and 64x64), drops it from the page cache, and reads batches of 64 in the
order of training within a memory cgroup (version 1, which needs root) that holds the process and its page cache.
`--memory_mb 0` sets no limit; the store is then read from memory after the first pass.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vqvae2.codes.format import Codes, Header
from vqvae2.codes.loading import load_code_batches
from vqvae2.codes.store import CodeStore
from vqvae2.codes.writer import CodeWriter
from vqvae2.config import LevelGrid
from vqvae2.training.order import StepOrder

LEVELS = [LevelGrid("top", 32, 32, 512), LevelGrid("bottom", 64, 64, 512)]
BATCH = 64
WRITTEN_AT_A_TIME = 128
POOL = 500  # distinct records


def write(path: Path, count: int) -> None:
    """Write a store as stage 2 does, one transaction a batch, and print its speed."""
    draw = np.random.default_rng(0)
    pool = [
        {x.name: torch.from_numpy(draw.integers(0, x.codebook_size, (x.height, x.width))) for x in LEVELS}
        for _ in range(min(POOL, count))
    ]
    writer, begin = CodeWriter(path, Header(LEVELS, ["even", "odd"], count, "no", "none")), time.perf_counter()
    for start in range(0, count, WRITTEN_AT_A_TIME):
        indices = range(start, min(start + WRITTEN_AT_A_TIME, count))
        writer.write([Codes(pool[i % len(pool)], i % 2, f"class_{i % 100:03d}/picture_{i:07d}.jpg") for i in indices])
    writer.close()
    print(f"written: {count} records, {count / (time.perf_counter() - begin):.0f} a second")


def drop_from_cache(path: Path) -> None:
    """Drop a file, which no process has mapped, from the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def memory_limit(megabytes: int) -> Iterator[None]:
    """Limit the memory of this process, page cache included."""
    if not megabytes:
        yield
        return
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    parent = Path("/sys/fs/cgroup/memory" + next(x for x in lines if ":memory:" in x).split(":", 2)[2])
    group = parent / "cold_store"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(megabytes * 2**20))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def read(path: Path, seconds: float) -> None:
    """Read batches in the order of training, and print the speed per second and per second of this process's CPU."""
    store, count = CodeStore(path), 0
    begin, used = time.perf_counter(), time.process_time()
    for batch in load_code_batches(store, StepOrder(len(store), BATCH, 0, 0)):
        count += len(batch.labels)
        if time.perf_counter() - begin > seconds:
            break
    wall, cpu = time.perf_counter() - begin, time.process_time() - used
    print(f"read: {count} of {len(store)} records, {count / wall:.0f} a second, {count / cpu:.0f} a second of CPU")


def main() -> None:
    """Parse the arguments, write the store and read it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cold_store"))
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--memory_mb", type=int, default=700)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    path = given.folder / "codes.lmdb"
    try:
        write(path, given.records)
        for _ in range(given.rounds):
            drop_from_cache(path / "data.mdb")
            with memory_limit(given.memory_mb):
                read(path, given.seconds)
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
