"""The list of files of torchvision's folder data sets, such as ImageNet, in a form that loader workers share."""

from array import array
from collections.abc import Iterator, Sequence

from torchvision.datasets import DatasetFolder

from vqvae2.images.names import Names


class Samples(Sequence[tuple[str, int]]):
    """The pairs of a path and a label that torchvision's DatasetFolder loads images from."""

    def __init__(self, samples: Sequence[tuple[str, int]]):
        self._paths = Names.of(path for path, _ in samples)
        self.labels = array("i", (label for _, label in samples))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[str, int]:  # type: ignore[override]  # no slices
        return self._paths[index], self.labels[index]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return zip(self._paths, self.labels, strict=True)


def pack_samples(dataset: object) -> None:
    """Replace the lists in one of torchvision's folder data sets, which workers would copy; do nothing for others."""
    if isinstance(dataset, DatasetFolder):
        dataset.samples = Samples(dataset.samples)
        dataset.targets = dataset.samples.labels
        if hasattr(dataset, "imgs"):
            dataset.imgs = dataset.samples
