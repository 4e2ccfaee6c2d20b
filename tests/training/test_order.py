"""The order of images, as a function of the step."""

import itertools

import pytest

from vqvae2.training.order import Item, StepOrder, epoch_order, in_order


def batches(count: int, **arguments) -> list[list[Item]]:
    """Return the first `count` batches of an order with the given arguments."""
    given = {"num_images": 10, "batch_size": 12, "seed": 3, "first_step": 0, **arguments}
    return list(itertools.islice(iter(StepOrder(**given)), count))


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (10, 12), (7, 7), (3, 8), (1, 4)])
def test_every_image_once_an_epoch(num_images: int, batch_size: int):
    """Each epoch is a permutation of all images, also where a batch crosses the end of an epoch."""
    made = batches(3 * num_images, num_images=num_images, batch_size=batch_size)
    stream = [x.index for batch in made for x in batch]
    epochs = [stream[i : i + num_images] for i in range(0, len(stream) - num_images + 1, num_images)]
    assert len(epochs) >= 3 and all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    assert epochs == [epoch_order(num_images, 3, i) for i in range(len(epochs))]


def test_epochs_and_seeds_differ():
    """Each epoch and each seed has a different order."""
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 3), (2, 1), (2, 3), (3, 2), (4, 3)])
def test_shares_make_up_the_batch_of_one_process(processes: int, accumulation: int):
    """The shares of all processes and accumulation parts, concatenated, equal the batch of a single process."""
    whole = batches(5)
    dealt = {"processes": processes, "accumulation": accumulation}
    shares = [batches(5 * accumulation, process=process, **dealt) for process in range(processes)]
    for step, expected in enumerate(whole):
        parts = range(step * accumulation, (step + 1) * accumulation)
        assert [item for part in parts for share in shares for item in share[part]] == expected


@pytest.mark.parametrize("accumulation", [1, 2])
def test_starting_late_equals_skipping(accumulation: int):
    """An order from step 6 equals the order from step 0 without its first 6 steps."""
    skipped = batches(10 * accumulation, accumulation=accumulation)[6 * accumulation :]
    assert batches(4 * accumulation, accumulation=accumulation, first_step=6) == skipped


def test_items_carry_their_step_and_position():
    """Each item contains its optimizer step and its batch index, which determine its random numbers."""
    for step, batch in enumerate(batches(3, first_step=4), start=4):
        assert [(x.step, x.batch_index) for x in batch] == [(step, position) for position in range(12)]


def test_in_order_keeps_all_in_order():
    """Consecutive batches contain the given indices in order; the last batch may be smaller."""
    made = in_order([5, 3, 8, 1, 9], 2)
    assert [[x.index for x in batch] for batch in made] == [[5, 3], [8, 1], [9]]
    assert [x.batch_index for batch in made for x in batch] == [0, 1, 2, 3, 4]
