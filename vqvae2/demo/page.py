"""The page: its components, and which handler is called at which event."""

import json
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from vqvae2.demo.handlers import Handlers, told
from vqvae2.demo.layout import Drawing, Parts, lay_out
from vqvae2.demo.pictures import ShownFiles
from vqvae2.demo.worker import Worker
from vqvae2.generation.generator import Generator

AT_ONCE = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
TURN = {"show_progress": "hidden", "api_visibility": "private", "concurrency_id": "model", "concurrency_limit": 1}
KEPT_SECONDS = 3600  # how long images of the page are kept on disk


def build_page(generator: Generator, name: str, folder: Path) -> gr.Blocks:
    """The page of a model.

    Args:
        generator: the trained models.
        name: name of the model, for the title.
        folder: Gradio's folder for temporary files.
    """
    with gr.Blocks(title=f"{name} - VQ-VAE-2", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        parts = lay_out(generator, name)
        handlers = Handlers(generator, Worker(), parts, ShownFiles(folder))
        _connect_drawings(parts, handlers)
        _connect_picture(parts, handlers)
        _edit_at(parts.completing.tab.select, parts, handlers)
        page.unload(handlers.leave)
    return page


def _connect_drawings(parts: Parts, handlers: Handlers) -> None:
    settings = [parts.new_seed, *parts.settings]
    _connect(parts, handlers, parts.sample, handlers.sample, [parts.count, *settings])
    of = parts.completing
    inputs = [parts.picture, of.editor, of.region, of.count, of.particles, *settings]
    _connect(parts, handlers, of.drawing, handlers.complete, inputs)
    if parts.resampling is not None:
        inputs = [parts.picture, parts.resampling.level, parts.resampling.count, *settings]
        _connect(parts, handlers, parts.resampling.drawing, handlers.resample, inputs)


def _connect(parts: Parts, handlers: Handlers, drawing: Drawing, draw: Callable, inputs: list) -> None:
    outputs = [drawing.gallery, drawing.status, drawing.images, parts.settings[-1]]
    # by the browser, at once; `draw` begins when it is this visitor's turn
    waiting = f"() => {json.dumps(told('Waiting for earlier requests.'))}"
    drawing.start.click(None, None, [drawing.status], js=waiting, **AT_ONCE)
    started = drawing.start.click(draw, inputs, outputs, **TURN)
    drawing.stop.click(handlers.stop(drawing), None, [drawing.status], cancels=[started], **AT_ONCE)
    outputs = [drawing.status, *shown_parts(parts)]
    chosen = drawing.gallery.select(handlers.choose(drawing), [drawing.images], outputs, **TURN)
    if drawing is parts.completing.drawing:
        _edit_at(chosen.then, parts, handlers)


def _connect_picture(parts: Parts, handlers: Handlers) -> None:
    of, uploads = parts.codes, [(parts.completing.upload, parts.completing.drawing.status)]
    uploads.append((of.upload, of.status))
    if parts.resampling is not None:
        uploads.append((parts.resampling.upload, parts.resampling.drawing.status))
    for button, status in uploads:
        outputs = list(dict.fromkeys([status, *shown_parts(parts)]))
        uploaded = button.upload(handlers.upload(status), [button], outputs, **TURN)
        if button is parts.completing.upload:
            _edit_at(uploaded.then, parts, handlers)
    chosen, outputs = [of.level, of.row, of.column], [of.status, of.here, of.everywhere, *of.maps.values()]
    of.show.click(handlers.view, [parts.picture_codes, *chosen], outputs, **TURN)
    for level, image in of.maps.items():
        image.select(handlers.click(level), [parts.picture_codes], [*chosen, *outputs], **TURN)


def _edit_at(event: Callable, parts: Parts, handlers: Handlers) -> None:
    """Put a new picture into the editor at an event after which the editor's tab is visible."""
    of = parts.completing
    event(handlers.edit, [parts.picture, of.edits_picture], [of.canvas, of.editor, of.edits_picture], **AT_ONCE)


def shown_parts(parts: Parts) -> list:
    """The components that depend on the picture, see Handlers.use."""
    of = parts.codes
    views = [parts.completing.edits_picture, of.view, *of.maps.values()]
    views += [] if parts.resampling is None else [parts.resampling.view]
    return [parts.picture, parts.picture_codes, *views, of.here, of.everywhere, of.status]
