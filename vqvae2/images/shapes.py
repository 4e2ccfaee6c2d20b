"""The built-in data set: images of shapes as a function of a key, for runs without files or a network."""

import math

import numpy as np
from PIL import Image, ImageDraw

from vqvae2.run.seeding import derive_seed

CLASSES = ("circle", "crescent", "cross", "heart", "ring", "square", "star", "triangle")
GROUND_COLOURS = np.array(
    [(0.85, 0.80, 0.70), (0.60, 0.75, 0.85), (0.80, 0.65, 0.75), (0.65, 0.80, 0.60), (0.70, 0.70, 0.75)]
)
SHAPE_COLOURS = np.array(
    [
        (0.80, 0.15, 0.15),
        (0.10, 0.35, 0.15),
        (0.15, 0.20, 0.70),
        (0.15, 0.12, 0.15),
        (0.50, 0.15, 0.55),
        (0.95, 0.95, 0.20),
    ]
)
SUPERSAMPLING = 4  # the outline is drawn at this multiple of the size and downscaled by averaging


def render(key: tuple[int | str, ...], label: int, height_width: tuple[int, int]) -> Image.Image:
    """Render an RGB image of one shape of class `label`; `key` determines everything else about it."""
    random = np.random.default_rng(derive_seed("shapes", *key))
    height, width = height_width
    covered = coverage(CLASSES[label], random, height, width)[..., None]
    ground_colour = GROUND_COLOURS[random.integers(len(GROUND_COLOURS))] + random.uniform(-0.04, 0.04, 3)
    shape_colour = SHAPE_COLOURS[random.integers(len(SHAPE_COLOURS))] + random.uniform(-0.04, 0.04, 3)
    ground = _texture(random, height, width, ground_colour, strength=0.08)
    shape = _texture(random, height, width, shape_colour, strength=0.05)
    pixels = ground + covered * (shape - ground)
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))


def coverage(name: str, random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return the fraction of each pixel that the shape covers: (height, width) in [0, 1]."""
    side = min(height, width)
    radius = random.uniform(0.26, 0.40) * side
    margins = [min(radius + 1, extent / 2) for extent in (width, height)]
    centre = [random.uniform(margin, extent - margin) for margin, extent in zip(margins, (width, height), strict=True)]
    turn = random.uniform(-math.pi, math.pi) if name in ("crescent", "star") else random.uniform(-0.4, 0.4)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])

    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for outline, fill in _outlines(name):
        points = (outline @ rotation.T * radius + centre) * SUPERSAMPLING
        pen.polygon([tuple(point) for point in points], fill=fill)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


def _outlines(name: str) -> list[tuple[np.ndarray, int]]:
    """Return the polygons of a shape inside the unit circle (y axis down), with their fill: 255 (shape) or 0 (hole).

    They are drawn in this order.
    """
    angle = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if name == "circle":
        return [(circle * 0.95, 255)]
    if name == "ring":
        return [(circle, 255), (circle * 0.55, 0)]
    if name == "crescent":
        return [(circle, 255), (circle * 0.85 + [0.45, 0.0], 0)]
    if name == "heart":
        x = 16 * np.sin(angle) ** 3
        y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
        return [(np.stack([x, -y], axis=1) / 16.5, 255)]
    if name == "star":
        return [(_star(points=5, inner=0.42), 255)]
    if name == "cross":
        a, b = 0.98, 0.30
        corners = [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
        return [(np.array(corners), 255)]
    sides = {"triangle": 3, "square": 4}[name]
    angle = np.arange(sides) * 2 * math.pi / sides + (math.pi / 4 if sides == 4 else -math.pi / 2)
    return [(np.stack([np.cos(angle), np.sin(angle)], axis=1), 255)]


def _star(points: int, inner: float) -> np.ndarray:
    angle = np.arange(2 * points) * math.pi / points - math.pi / 2
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius], axis=1)


def _texture(random: np.random.Generator, height: int, width: int, colour: np.ndarray, strength: float) -> np.ndarray:
    """Return `colour` with a linear brightness gradient and, with probability 1/3, stripes: (height, width, 3)."""
    y, x = (np.arange(extent) / max(height, width) for extent in (height, width))
    direction = random.uniform(0, 2 * math.pi)
    along = (x - 0.5) * math.cos(direction) + ((y - 0.5) * math.sin(direction))[:, None]
    shade = 2 * strength * along
    if random.random() < 1 / 3:
        shade = shade + strength * np.sin(2 * math.pi * random.uniform(2, 4) * along + random.uniform(0, 2 * math.pi))
    return colour + shade[..., None]
