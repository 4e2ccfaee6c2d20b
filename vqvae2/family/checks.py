"""Checks of the configuration of a comparison, before anything is written."""

from collections.abc import Iterator
from dataclasses import fields

from vqvae2.config import check_parts
from vqvae2.config.checks import Requirement
from vqvae2.family.config import FamilyConfig
from vqvae2.family.members import check_names

LARGEST_SIDE = 64  # pixels; all images are kept in memory
AT_LEAST_TWO = ("hidden_channels", "codebook_size", "sequence_length")
UNUSED = {
    "images": ("random_resized_crop",),
    "train": ("start_from",),
    "evaluation": ("temperature", "top_p", "guidance"),
}
NOT_NEGATIVE = ("beta", "adversarial_weight", "residual_layers")  # 0 is valid


def check_family(config: FamilyConfig) -> None:
    """Raise a UserError that lists every field whose value is not valid."""
    check_parts(config.images, config.train, config.evaluation, _requirements(config))
    check_names(config.names, "models")


def _requirements(config: FamilyConfig) -> Iterator[Requirement]:
    members = config.members
    yield Requirement(bool(config.run_dir.strip()), "run_dir", config.run_dir, "use the path of a folder")
    yield Requirement(config.seed >= 0, "seed", config.seed, "use an integer, 0 or more")
    yield Requirement(config.test_images >= 2, "test_images", config.test_images, "use 2 or more")
    grey = config.images.channels == 1 or not config.binarise
    yield Requirement(grey, "binarise", True, "use false, or set images.channels to 1: only grayscale is binarized")
    stride = members.stride
    power = stride >= 2 and stride & (stride - 1) == 0
    yield Requirement(power, "members.stride", stride, "use a power of two, 2 or more")
    size = config.images.size
    two = isinstance(size, int) or len(size) == 2
    yield Requirement(two, "images.size", size, "use one integer, or [height, width]")
    if not two:
        return
    sides = config.images.height_width
    yield Requirement(max(sides) <= LARGEST_SIDE, "images.size", size, f"use sides of {LARGEST_SIDE} or less")
    multiple = max(4, stride)  # VQ-VAE has strides 4 and 2
    divides = all(side > 0 and side % multiple == 0 for side in sides)
    yield Requirement(divides, "images.size", config.images.size, f"use multiples of {multiple}")
    causal = [name for name in config.names if name.startswith("pixelcnn")]
    yield Requirement(
        config.images.channels == 1 or not causal,
        "models",
        config.models,
        f"leave out {', '.join(causal)}, or set images.channels to 1",
    )
    strips = members.group_rows >= 1 and sides[0] % members.group_rows == 0
    yield Requirement(
        strips or "oi_vae" not in config.names, "members.group_rows", members.group_rows, f"use a divisor of {sides[0]}"
    )
    odd = members.causal_kernel_size >= 3 and members.causal_kernel_size % 2 == 1
    yield Requirement(odd, "members.causal_kernel_size", members.causal_kernel_size, "use an odd number, 3 or more")
    yield Requirement(0 <= members.sparsity < 1, "members.sparsity", members.sparsity, "use 0 or more and less than 1")
    yield Requirement(members.delta > 0, "members.delta", members.delta, "use a number above 0")
    yield from _unused(config)
    for field in fields(members):
        value = getattr(members, field.name)
        least = 0 if field.name in NOT_NEGATIVE else 2 if field.name in AT_LEAST_TWO else 1
        if field.name not in ("delta", "conditional_prior", "sparsity"):
            yield Requirement(value >= least, f"members.{field.name}", value, f"use {least} or more")


def _unused(config: FamilyConfig) -> Iterator[Requirement]:
    """Fields of the sections shared with a run that a comparison does not use: they must keep their defaults."""
    for section, names in UNUSED.items():
        given = getattr(config, section)
        for name in names:
            value, default = getattr(given, name), getattr(type(given)(), name)
            right = f"use {'null' if default is None else default}: a comparison does not use this field"
            yield Requirement(value == default, f"{section}.{name}", value, right)
