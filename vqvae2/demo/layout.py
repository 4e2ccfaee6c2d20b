"""The components of the page and where they are."""

from abc import ABCMeta
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from vqvae2.config import LevelGrid
from vqvae2.demo.actions import ANY_CLASS, LARGEST_SEED, MOST_IMAGES, MOST_PARTICLES, classes_to_choose
from vqvae2.demo.pictures import BRUSH_COLOR, BRUSH_OPACITY, REGIONS, enlargement
from vqvae2.generation.controls import UNCONDITIONAL
from vqvae2.generation.generator import Generator
from vqvae2.images.decode import EXTENSIONS

MOST_VARIANTS = 16  # completions or resampled images


def _layers(self: Any, payload: Any) -> list[bytes]:
    """The painted layers of an image editor as image files, which our own decoder reads."""
    if payload is None:
        return []
    stored = self.blob_storage.pop(payload.id, None) if payload.id is not None else payload
    found = [] if stored is None else [x for x in stored.layers or [] if x is not None]
    return [x if isinstance(x, bytes) else Path(x.path).read_bytes() for x in found]


# Not a class statement: Gradio's metaclass would write a stub file beside this one. A template uses the page's code of
# its base class.
Editor: Any = ABCMeta.__new__(
    type(gr.ImageEditor), "Editor", (gr.ImageEditor,), {"is_template": True, "preprocess": _layers}
)


class Drawing(NamedTuple):
    """What every tab that samples images has: buttons, a line of text, and the images, shown and as a tensor."""

    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    gallery: gr.Gallery
    images: gr.State


class Completing(NamedTuple):
    """The tab Complete."""

    tab: gr.Tab
    canvas: gr.Column  # it has the editor, and is hidden as long as there is no picture
    editor: gr.ImageEditor
    edits_picture: gr.State  # whether the editor has the present picture
    upload: gr.UploadButton
    region: gr.Dropdown
    count: gr.Slider
    particles: gr.Slider
    drawing: Drawing


class Resampling(NamedTuple):
    """The tab Resample."""

    view: gr.Image
    upload: gr.UploadButton
    level: gr.Radio
    count: gr.Slider
    drawing: Drawing


class Codes(NamedTuple):
    """The tab Codes."""

    view: gr.Image
    maps: dict[str, gr.Image]  # by level
    upload: gr.UploadButton
    level: gr.Radio
    row: gr.Number
    column: gr.Number
    show: gr.Button
    status: gr.HTML
    here: gr.Image
    everywhere: gr.Image


@dataclass(frozen=True)
class Parts:
    """The components of the page."""

    picture: gr.State  # uint8 (1, C, H, W) or None
    picture_codes: gr.State  # its codes by level, or None
    new_seed: gr.Checkbox
    settings: list[Any]  # in the order of actions.Settings; the seed is the last one
    count: gr.Slider
    sample: Drawing
    completing: Completing
    resampling: Resampling | None  # None: there is one level only
    codes: Codes


def lay_out(generator: Generator, name: str) -> Parts:
    """Create all components, in a Blocks context."""
    height, width = generator.height_width
    grids = [prior.grid for prior in generator.priors.values()]
    sizes = ", ".join(f"{grid.name} {grid.width}x{grid.height}" for grid in grids)
    gr.Markdown(f"# {name}\nVQ-VAE-2, images of {width}x{height} pixels. Codes: {sizes}.")
    picture, picture_codes = gr.State(None), gr.State(None)
    new_seed, settings = _settings(generator)
    resampling = None
    with gr.Tabs():
        with gr.Tab("Sample"):
            count = gr.Slider(1, MOST_IMAGES, 16, step=1, label="Images")
            sample = _drawing("Sample")
        with gr.Tab("Complete") as tab, gr.Row():
            completing = _completing(tab, height, width)
        if len(grids) > 1:
            with gr.Tab("Resample"), gr.Row():
                resampling = _resampling([grid.name for grid in grids[1:]])
        with gr.Tab("Codes"):
            codes = _codes(grids)
    return Parts(picture, picture_codes, new_seed, settings, count, sample, completing, resampling, codes)


def _settings(generator: Generator) -> tuple[gr.Checkbox, list[Any]]:
    classes = classes_to_choose(generator)
    can_be_guided = UNCONDITIONAL in [value for _, value in classes]
    with gr.Row():
        label = gr.Dropdown(
            classes or [("Any class", ANY_CLASS)], value=ANY_CLASS, label="Class", visible=bool(classes), min_width=150
        )
        seed = gr.Number(0, precision=0, minimum=0, maximum=LARGEST_SEED, label="Seed", min_width=150)
        new_seed = gr.Checkbox(True, label="New seed each time", container=False, min_width=150)
    with gr.Accordion("More settings", open=False), gr.Row():
        temperature = gr.Slider(0.1, 2, 1, step=0.05, label="Temperature", min_width=150)
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", min_width=150)
        guidance = gr.Slider(0, 5, 1, step=0.1, label="Guidance", visible=can_be_guided, min_width=150)
    return new_seed, [label, temperature, top_p, guidance, seed]


def _drawing(verb: str) -> Drawing:
    with gr.Row():
        start = gr.Button(verb, variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=80, scale=0)
    status = gr.HTML(elem_classes="status")
    gallery = gr.Gallery(label="Images", allow_preview=False, height="auto", buttons=[], elem_classes="images")
    return Drawing(start, stop, status, gallery, gr.State(None))


def _completing(tab: gr.Tab, height: int, width: int) -> Completing:
    with gr.Column(min_width=300):
        with gr.Column(visible=False) as canvas:
            editor = _editor(height, width)
        upload = _upload_button()
        region = gr.Dropdown(REGIONS, value=REGIONS[0], label="Area to sample", info="Paint over it, or choose one.")
        count = gr.Slider(1, MOST_VARIANTS, 4, step=1, label="Completions")
        particles = gr.Slider(
            1, MOST_PARTICLES, 16, step=1, label="Particles", info="More fit what is kept better and take longer."
        )
    with gr.Column(min_width=300):
        return Completing(tab, canvas, editor, gr.State(False), upload, region, count, particles, _drawing("Complete"))


def _editor(height: int, width: int) -> gr.ImageEditor:
    factor = enlargement(height, width)
    size = max(height, width) * factor // 8
    return Editor(
        label="Picture",
        sources=(),
        transforms=(),
        layers=False,
        canvas_size=(width * factor, height * factor),
        brush=gr.Brush(default_size=size, colors=[(BRUSH_COLOR, BRUSH_OPACITY)], color_mode="fixed"),
        eraser=gr.Eraser(default_size=size),
        buttons=[],
    )


def _resampling(levels: list[str]) -> Resampling:
    with gr.Column(min_width=300):
        view = _image("Picture")
        upload = _upload_button()
        level = gr.Radio(levels, value=levels[-1], label="Level", info="This level and finer ones are sampled.")
        count = gr.Slider(1, MOST_VARIANTS, 4, step=1, label="Images")
    with gr.Column(min_width=300):
        return Resampling(view, upload, level, count, _drawing("Resample"))


def _codes(grids: list[LevelGrid]) -> Codes:
    names = [grid.name for grid in grids]
    with gr.Row():
        with gr.Column(min_width=240):
            view = _image("Picture")
            upload = _upload_button()
        maps = {name: _image(f"Codes of level {name}") for name in names}
    status = gr.HTML("<p>Select a code in a map, or by its row and column.</p>", elem_classes="status")
    with gr.Row():
        here = _image("This code alone")
        everywhere = _image("This code everywhere")
        with gr.Column(min_width=240):
            level = gr.Radio(names, value=names[0], label="Level")
            with gr.Row():
                row = gr.Number(1, precision=0, minimum=1, label="Row", min_width=80)
                column = gr.Number(1, precision=0, minimum=1, label="Column", min_width=80)
            show = gr.Button("Show code", variant="primary")
    return Codes(view, maps, upload, level, row, column, show, status, here, everywhere)


def _image(label: str) -> gr.Image:
    return gr.Image(label=label, interactive=False, buttons=[], min_width=140, elem_classes="shown")


def _upload_button() -> gr.UploadButton:
    return gr.UploadButton("Upload a picture", file_types=sorted(EXTENSIONS), size="md")
