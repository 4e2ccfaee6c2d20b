"""The summary of a survey that is printed for the user."""

from pathlib import Path

import numpy as np

from vqvae2.config import ImagesConfig
from vqvae2.images.survey_record import Survey, unreadable_list


def describe(survey: Survey, images: ImagesConfig, record: Path) -> list[str]:
    """Return the lines of the summary that is printed for the user."""
    height, width = images.height_width
    widths, heights = survey.of_readable("width"), survey.of_readable("height")
    small = int(((widths < width) | (heights < height)).sum())
    labels = survey.of_readable("label")
    counts = np.bincount(labels[labels >= 0], minlength=len(survey.classes)).tolist()
    lines = [
        f"{survey.root}: {len(widths)} images, {widths.min()}x{heights.min()} to {widths.max()}x{heights.max()} "
        f"pixels, median {np.median(widths):.0f}x{np.median(heights):.0f}"
    ]
    if survey.classes:
        shown = ", ".join(f"{name} {counts[i]}" for i, name in enumerate(survey.classes[:20]))
        lines.append(f"{len(survey.classes)} classes: {shown}{', ...' if len(survey.classes) > 20 else ''}")
    lines += [f"warning: class {name} has one image" for i, name in enumerate(survey.classes) if counts[i] == 1]
    lines += [f"warning: class {name} has no readable image" for i, name in enumerate(survey.classes) if not counts[i]]
    if small:
        lines.append(f"{small} of them are smaller than {width}x{height} pixels and are upscaled")
    if survey.ignored:
        lines.append(f"{survey.ignored} files that are not images are ignored")
    if len(survey.unreadable):
        listed = unreadable_list(record)
        lines.append(f"warning: {len(survey.unreadable)} files cannot be read and are skipped; listed in {listed}")
    return lines
