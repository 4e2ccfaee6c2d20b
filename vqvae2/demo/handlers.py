"""What happens at the events of the page. A handler returns the new values of components."""

import html
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from torch import Tensor

from vqvae2.demo import actions
from vqvae2.demo.actions import LARGEST_SEED, Settings, whole
from vqvae2.demo.codes import cell_of, code_maps, view_code
from vqvae2.demo.layout import Drawing, Parts
from vqvae2.demo.pictures import ShownFiles, kept_outside, read_upload
from vqvae2.demo.worker import Job, Worker
from vqvae2.errors import UserError
from vqvae2.generation.generator import Generator

Values = dict[Any, Any]  # new values by component
NO_PICTURE = "There is no picture yet: upload one, or select a sample."
NEW_SEEDS = 10**6  # seeds drawn at random are below it, so that they are easy to note


class Handlers:
    """The event handlers of the page. The order of their arguments is that of the inputs in page.py."""

    def __init__(self, generator: Generator, worker: Worker, parts: Parts, files: ShownFiles):
        self.generator = generator
        self.worker = worker
        self.parts = parts
        self.shown = files.path

    def sample(self, request: gr.Request, count: float, *settings: Any) -> Iterator[Values]:
        """Sample images."""

        def work(chosen: Settings, job: Job) -> None:
            actions.sample(self.generator, count, chosen, job)

        yield from self._draw(self.parts.sample, request, settings, work)

    def complete(
        self,
        request: gr.Request,
        picture: Tensor | None,
        layers: list[bytes],
        region: str,
        count: float,
        particles: float,
        *settings: Any,
    ) -> Iterator[Values]:
        """Complete the picture."""

        def work(chosen: Settings, job: Job) -> None:
            given = needed(picture)
            mask = kept_outside(region, layers, self.generator.height_width)
            actions.complete(self.generator, given, mask, count, particles, chosen, job)

        yield from self._draw(self.parts.completing.drawing, request, settings, work)

    def resample(
        self, request: gr.Request, picture: Tensor | None, level: str, count: float, *settings: Any
    ) -> Iterator[Values]:
        """Sample a level and all finer ones anew."""

        def work(chosen: Settings, job: Job) -> None:
            actions.resample(self.generator, needed(picture), level, count, chosen, job)

        assert self.parts.resampling is not None
        yield from self._draw(self.parts.resampling.drawing, request, settings, work)

    def _draw(
        self, drawing: Drawing, request: gr.Request, values: tuple, work: Callable[[Settings, Job], None]
    ) -> Iterator[Values]:
        """Run `work` and show its frames; `values` are those of Parts.new_seed and Parts.settings."""
        new_seed, *chosen = values
        settings = Settings(*chosen)
        if new_seed:
            settings = settings._replace(seed=random.randrange(NEW_SEEDS))
        yield {drawing.status: told("Sampling."), self.parts.settings[-1]: settings.seed}
        begin = time.monotonic()
        frame = None
        try:
            for frame in self.worker.run(str(request.session_hash), lambda job: work(settings, job)):
                shown = [self.shown(image) for image in frame.images]
                yield {drawing.gallery: shown, drawing.status: told(f"Sampling: {frame.fraction:.0%}.")}
        except UserError as error:
            yield {drawing.status: refused(error)}
            return
        if frame is None or frame.fraction < 1:
            yield {drawing.status: told("Stopped.")}
            return
        text = f"Done in {time.monotonic() - begin:.1f} s. Select an image to use it as the picture of the other tabs."
        yield {drawing.status: told(text), drawing.images: frame.images}

    def stop(self, drawing: Drawing) -> Callable[[gr.Request], Values]:
        """A handler that cancels the requests of the visitor."""

        def handler(request: gr.Request) -> Values:
            self.leave(request)
            return {drawing.status: told("Stopped.")}

        return handler

    def leave(self, request: gr.Request) -> None:
        """Cancel the requests of a visitor who has left."""
        self.worker.cancel(str(request.session_hash))

    def upload(self, status: gr.HTML) -> Callable[[str], Values]:
        """A handler that uses an uploaded file as the picture."""

        def handler(path: str) -> Values:
            height, width = self.generator.height_width
            try:
                picture = read_upload(path, (height, width), self.generator.channels, self.generator.background)
            except UserError as error:
                return {status: refused(error)}
            return {**self.use(picture), status: told(f"Scaled and center-cropped to {width}x{height} pixels.")}

        return handler

    def choose(self, drawing: Drawing) -> Callable[[gr.SelectData, Tensor | None], Values]:
        """A handler that uses the selected image of a gallery as the picture."""

        def handler(event: gr.SelectData, images: Tensor | None) -> Values:
            if images is None or event.index >= len(images):
                return {drawing.status: told("The images are not finished yet.")}
            text = f"Image {event.index + 1} is now the picture of the other tabs."
            return {**self.use(images[event.index][None]), drawing.status: told(text)}

        return handler

    def use(self, picture: Tensor) -> Values:
        """Values of all components that show the picture, see `shown_parts`."""
        parts, here = self.parts, self.parts.codes
        codes = self.worker.call(lambda: self.generator.encode(picture))
        shown = self.shown(picture[0])
        maps = {here.maps[name]: self.shown(x) for name, x in code_maps(self.generator, codes).items()}
        views: Values = {here.view: shown, parts.completing.edits_picture: False}
        if parts.resampling is not None:
            views[parts.resampling.view] = shown
        nothing = {here.here: None, here.everywhere: None, here.status: told("Select a code in a map.")}
        return {parts.picture: picture, parts.picture_codes: codes, **views, **maps, **nothing}

    def edit(self, picture: Tensor | None, edits_picture: bool) -> Values:
        """Put a new picture into the editor. Its tab must be visible: otherwise the editor may place it wrongly."""
        of = self.parts.completing
        if picture is None or edits_picture:
            return {of.edits_picture: edits_picture}
        value: dict[str, Any] = {"background": self.shown(picture[0]), "layers": [], "composite": None}
        return {of.canvas: gr.Column(visible=True), of.editor: value, of.edits_picture: True}

    def click(self, level: str) -> Callable[[gr.SelectData, dict[str, Tensor] | None], Values]:
        """A handler that shows the code at the position of the level's map that was clicked."""

        def handler(event: gr.SelectData, codes: dict[str, Tensor] | None) -> Values:
            parts, cell = self.parts.codes, cell_of(self.generator, level)
            column, row = (int(x) // cell + 1 for x in event.index)
            chosen = {parts.level: level, parts.row: row, parts.column: column}
            return {**chosen, **self.view(codes, level, row, column)}

        return handler

    def view(self, codes: dict[str, Tensor] | None, level: str, row: float, column: float) -> Values:
        """Show the code at a row and a column, counted from 1."""
        parts = self.parts.codes
        try:
            if codes is None:
                raise UserError(NO_PICTURE)
            i, j = whole("row", row, 1, LARGEST_SEED) - 1, whole("column", column, 1, LARGEST_SEED) - 1
            view = self.worker.call(lambda: view_code(self.generator, codes, level, i, j))
        except UserError as error:
            return {parts.status: refused(error)}
        maps = {**code_maps(self.generator, codes), level: view.map}
        text = f"Code {view.code} of level {level}, at {view.positions} of {codes[level].numel()} positions."
        return {
            parts.status: told(text),
            parts.here: self.shown(view.here),
            parts.everywhere: self.shown(view.everywhere),
            **{parts.maps[name]: self.shown(x) for name, x in maps.items()},
        }


def needed(picture: Tensor | None) -> Tensor:
    """The picture.

    Raises:
        UserError: there is none.
    """
    if picture is None:
        raise UserError(NO_PICTURE)
    return picture


def told(text: str) -> str:
    """A line of text as HTML that screen readers announce."""
    return f'<p role="status">{html.escape(text)}</p>'


def refused(error: UserError) -> str:
    """Show the error in a box; return it as a line of text."""
    gr.Warning(html.escape(str(error)))
    return told(str(error))
