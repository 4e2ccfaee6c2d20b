"""How often reconstructions of drawn shapes keep the color of the shape.

    python -m tests.by_hand.shape_colours --config configs/shapes256.yaml

For each held-out image, the color of the palette that is nearest to the median pixel of the shape is compared with
that of the reconstruction, inside the same pixels.
"""

import numpy as np
from torch import Tensor

from vqvae2 import Generator
from vqvae2.images.shapes import CLASSES, SHAPE_COLOURS, coverage
from vqvae2.images.sources import open_images
from vqvae2.run.command_line import parse_config, run
from vqvae2.run.seeding import derive_seed


def nearest_colour(image: Tensor, inside: np.ndarray) -> int:
    """Index of the color of the palette that is nearest to the median of the pixels `inside` of an image (3, H, W)."""
    median = np.median(image.numpy()[:, inside] / 255, axis=1)
    return int(np.abs(SHAPE_COLOURS - median).sum(1).argmin())


def main() -> None:
    config, _ = parse_config(description=__doc__)
    generator = Generator.from_run(config.run_dir)
    images = open_images(config.images, config.seed).validation
    right = np.zeros(len(SHAPE_COLOURS), dtype=int)
    total = np.zeros_like(right)
    for i in range(len(images)):
        random = np.random.default_rng(derive_seed("shapes", config.seed, "validation", i))  # as for the image
        inside = coverage(CLASSES[images.labels[i]], random, *config.images.height_width) == 1
        image = images.load(i)
        colour = nearest_colour(image, inside)
        total[colour] += 1
        right[colour] += nearest_colour(generator.decode(generator.encode(image[None]))[0], inside) == colour
    for colour, (good, of) in enumerate(zip(right, total, strict=True)):
        print(f"RGB {SHAPE_COLOURS[colour]}: {good} of {of}")
    print(f"the right color in {100 * right.sum() / total.sum():.1f} % of {total.sum()} reconstructions")


if __name__ == "__main__":
    run(main)
