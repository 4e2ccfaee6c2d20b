"""The work of a survey, shared by the processes of a launch and their loader workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vqvae2.images.names import Names
from vqvae2.images.survey_record import File, Survey
from vqvae2.run.launch import Together, refusals_reach_all
from vqvae2.run.stopping import ignore_stop_signals

BATCH = 16  # files that a worker checks at a time

T = TypeVar("T")


def from_main(make: Callable[[], T], processes: Together) -> T:
    """Return to all processes what the main process makes, or raise its ToldError in all of them."""
    if processes.num_processes == 1:
        return make()
    made = None
    with refusals_reach_all(processes):
        if processes.is_main_process:
            made = make()
    return broadcast_object_list([made])[0]


def main_first(make: Callable[[], T], processes: Together) -> T:
    """Call `make` in the main process, which may download or write what it needs, and then in the others."""
    made: list[T] = []
    for is_turn in (processes.is_main_process, not processes.is_main_process):
        with refusals_reach_all(processes):
            if is_turn:
                made.append(make())
    return made[0]


def part_of(count: int, processes: Together) -> range:
    """Indices of the files that this process checks: every n-th file, so that all parts take about the same time."""
    return range(processes.process_index, count, processes.num_processes)


def merged(mine: Survey, names: Sequence[str], processes: Together) -> Survey:
    """Return to all processes the survey of all files, of which `mine` has those in `part_of`.

    Args:
        mine: survey of the files that this process checked.
        names: names of all files.
        processes: the processes that share the work.
    """
    if processes.num_processes == 1:
        return mine
    parts: list[Survey] = gather_object([mine])
    columns = {name: np.empty(len(names), values.dtype) for name, values in mine.columns.items()}
    for name, values in columns.items():
        for process, part in enumerate(parts):
            values[process :: len(parts)] = part.columns[name]
    failed = sorted(
        (int(i) * len(parts) + process, error)
        for process, part in enumerate(parts)
        for i, error in zip(part.unreadable, part.errors, strict=True)
    )
    unreadable = np.array([i for i, _ in failed], np.int64)
    errors = Names.of(error for _, error in failed)
    return Survey(mine.root, mine.classes, mine.ignored, Names.of(names), columns, unreadable, errors)


def look_at(looks: Dataset[File], indices: Sequence[int], workers: int, title: str, show: bool) -> Iterator[File]:
    """Yield the records that worker processes make of the files at the given indices, in this order.

    Args:
        looks: checks the file of an index.
        indices: indices of the files.
        workers: number of worker processes; 0: check in this process.
        title: what is surveyed, for the progress bar.
        show: whether to show progress.
    """
    loader = DataLoader(
        looks, BATCH, sampler=indices, num_workers=workers, collate_fn=list, worker_init_fn=ignore_stop_signals
    )
    with tqdm(total=len(indices), desc=f"surveying {title}", unit="file", disable=not show or not indices) as bar:
        for batch in loader:
            bar.update(len(batch))
            yield from batch
