"""The demo's page in headless Chromium, used by clicks and keys. Skipped without the extra, Playwright or Chromium.

pip install -e ".[test,demo]" playwright
"""

import io
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import wait_until
from vqvae2 import Generator
from vqvae2.demo.server import served
from vqvae2.demo.worker import Worker

pytest.importorskip("gradio", reason="needs the extra demo")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
SECONDS = 120  # limit of each wait; none of them needs it on an idle machine


class Served:
    """A page that is served, and the addresses that this process has connected to since."""

    def __init__(self, url: str, worker: Worker, addresses: list[Any]):
        self.url = url
        self.worker = worker
        self.addresses = addresses


@pytest.fixture(scope="module")
def page_of_mnist() -> Iterator[Served]:
    worker, addresses = Worker(), []
    connect = socket.socket.connect

    def recorded(self: socket.socket, address: Any) -> None:
        addresses.append(address)
        connect(self, address)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqvae2.demo.page.Worker", lambda: worker)
        patch.setattr(socket.socket, "connect", recorded)
        generator = Generator.from_pretrained("mnist", device="cpu", dtype="float32")
        with served(generator, "mnist", "127.0.0.1", port) as url:
            yield Served(url, worker, addresses)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A tab of the browser with the page, and what went wrong in it."""

    def __init__(self, browser: Any, url: str, size: str = "desktop", scheme: str = "light"):
        phone = size == "phone"
        options = {"color_scheme": scheme, "is_mobile": phone, "has_touch": phone}
        self.context = browser.new_context(viewport=SIZES[size], **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", lambda x: self.errors.append(x.text) if x.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda x: None if is_here(x.url, url) else self.elsewhere.append(x.url))
        self.page.goto(url)
        self.button("Sample").wait_for()

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True).locator("visible=true")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def status(self, text: str) -> Any:
        """Wait for a visible line of text that contains `text`."""
        found = self.page.get_by_role("status").filter(has_text=text).locator("visible=true").first
        found.wait_for()
        return found

    def images(self) -> list[np.ndarray]:
        """The images of the visible gallery in the size of the model."""
        self.page.wait_for_function(
            "[...document.querySelectorAll('.images img')].every(x => x.complete && x.naturalWidth > 0)"
        )
        links = self.page.locator(".images:visible img").evaluate_all("all => all.map(x => x.src)")
        return [self.read(link) for link in links]

    def read(self, link: str) -> np.ndarray:
        body = self.context.request.get(link).body()
        with Image.open(io.BytesIO(body)) as image:
            assert image.format == "PNG"
            return np.asarray(image)[::10, ::10]

    def sample(self, seed: int = 3, count: int = 4) -> None:
        """Sample by clicks, with a given seed."""
        self.page.get_by_label("New seed each time").uncheck()
        self.page.get_by_label("Seed", exact=True).fill(str(seed))
        self.page.get_by_label("number input for Images").locator("visible=true").fill(str(count))
        self.button("Sample").click()
        self.status("Done in")

    def choose(self, number: int) -> None:
        """Use an image of the visible gallery as the picture."""
        self.page.locator(".images:visible button:has(img)").nth(number - 1).click()
        self.status(f"Image {number} is now the picture")

    def close(self) -> None:
        self.context.close()


def is_here(url: str, served_at: str) -> bool:
    return url.startswith((served_at, "data:", "blob:"))


@pytest.fixture
def visit(chromium: Any, page_of_mnist: Served) -> Iterator[Visit]:
    """A visit, in which nothing may go wrong in the browser and nothing may leave the machine."""
    visit = Visit(chromium, page_of_mnist.url)
    yield visit
    visit.close()
    assert not visit.errors and not visit.elsewhere
    assert page_of_mnist.addresses and all(is_local(address) for address in page_of_mnist.addresses)


def is_local(address: Any) -> bool:
    return isinstance(address, str | bytes) or address[0] in ("127.0.0.1", "localhost", "::1")


def as_arrays(images: torch.Tensor) -> list[np.ndarray]:
    return [image[0].numpy() for image in images]


def same(shown: list[np.ndarray], images: torch.Tensor) -> bool:
    return len(shown) == len(images) and all((x == y).all() for x, y in zip(shown, as_arrays(images), strict=True))


@pytest.fixture(scope="module")
def samples(generator: Generator) -> torch.Tensor:
    """The samples of `Visit.sample`."""
    return generator.sample(4, seed=3, batch_size=4)


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desktop", "light")])
def test_the_page_fits_screen_and_scheme(chromium: Any, page_of_mnist: Served, size: str, scheme: str) -> None:
    """No tab is wider than the screen; the background is dark or light as the visitor prefers."""
    visit = Visit(chromium, page_of_mnist.url, size, scheme)
    for tab in ("Complete", "Resample", "Codes", "Sample"):
        visit.tab(tab)
        assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= SIZES[size]["width"]
    color = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert color.startswith("rgb("), color
    brightness = sum(int(x) for x in color[4:-1].split(",")) / 3
    assert brightness < 60 if scheme == "dark" else brightness > 200
    visit.close()
    assert not visit.errors


def test_samples_are_those_of_the_generator(visit: Visit, samples: torch.Tensor) -> None:
    visit.sample()
    assert same(visit.images(), samples)


def test_settings_and_class_are_used(visit: Visit, generator: Generator) -> None:
    """A class is chosen and the guidance is set with the keyboard."""
    visit.page.get_by_label("Class", exact=True).click()
    visit.page.get_by_role("option", name="7 - seven").click()
    visit.page.get_by_text("More settings").click()
    visit.page.get_by_label("number input for Guidance").fill("2")
    visit.sample(seed=5, count=2)
    assert same(visit.images(), generator.sample(2, label=7, guidance=2.0, seed=5, batch_size=2))


def test_each_request_has_a_new_seed(visit: Visit) -> None:
    """Unless the visitor keeps it; the field shows the seed that was used."""
    visit.page.get_by_label("number input for Images").locator("visible=true").fill("1")
    seeds = []
    for _ in range(2):
        visit.button("Sample").click()
        visit.status("Sampling")
        visit.status("Done in")
        seeds.append(int(visit.page.get_by_label("Seed", exact=True).input_value()))
    assert 0 not in seeds and seeds[0] != seeds[1]


def test_a_picture_is_completed_where_it_is_painted_over(visit: Visit, samples: torch.Tensor) -> None:
    """Completions differ from each other and from the picture, mostly where it was painted over."""
    visit.sample()
    visit.choose(2)
    visit.tab("Complete")
    visit.button("Complete").click()
    visit.status("Nothing is painted")
    canvas = visit.page.locator("canvas:visible").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(x - 30, y)
    visit.page.mouse.down()
    for i in range(1, 7):
        visit.page.mouse.move(x - 30 + 10 * i, y + 3 * (i % 2), steps=2)
    visit.page.mouse.up()
    visit.page.get_by_label("number input for Particles").fill("4")
    visit.button("Complete").click()
    visit.status("Done in")
    images = np.stack(visit.images()).astype(int)
    changed = np.abs(images - samples[1, 0].numpy()).mean(0)
    middle, edge = changed[9:19, 7:21].mean(), np.concatenate([changed[:3], changed[-3:]]).mean()
    assert len(images) == 4 and len(np.unique(images.reshape(4, -1), axis=0)) == 4
    assert middle > 10 * edge and middle > 10


def test_the_editor_gives_the_painted_layers_as_files() -> None:
    """Also when Gradio builds it again for a visitor; no stub file is written."""
    from vqvae2.demo import layout

    editor = layout.Editor(label="Picture")
    for one in (editor, type(editor)(**editor.constructor_args)):
        one.blob_storage["a"] = SimpleNamespace(layers=[b"one", None, b"two"])
        assert one.preprocess(SimpleNamespace(id="a")) == [b"one", b"two"] and not one.blob_storage
        assert one.preprocess(SimpleNamespace(id="gone")) == [] == one.preprocess(None)
        assert one.get_block_name() == "imageeditor"
    assert not Path(layout.__file__).with_suffix(".pyi").exists()


def test_a_chosen_area_is_completed_with_particles(visit: Visit, generator: Generator, samples: torch.Tensor) -> None:
    """The completions are those of the generator for copies of the picture."""
    begin_to_complete(visit, "Bottom half", "2", "8")
    visit.status("Done in")
    copies = samples[:1].expand(2, -1, -1, -1)
    assert same(visit.images(), generator.complete(copies, "top", particles=8, seed=3, batch_size=16))


def test_a_level_is_resampled(visit: Visit, generator: Generator, samples: torch.Tensor) -> None:
    visit.tab("Resample")
    visit.button("Resample").click()
    visit.status("There is no picture yet")
    visit.tab("Sample")
    visit.sample()
    visit.choose(3)
    visit.tab("Resample")
    visit.page.get_by_label("number input for Images").locator("visible=true").fill("3")
    visit.button("Resample").click()
    visit.status("Done in")
    copies = samples[2:3].expand(3, -1, -1, -1)
    assert same(visit.images(), generator.resample(copies, "bottom", seed=3, batch_size=3))


@pytest.mark.parametrize(("level", "row", "column"), [("top", 3, 5), ("bottom", 9, 6)])
def test_a_code_is_shown_by_a_click(
    visit: Visit, generator: Generator, samples: torch.Tensor, level: str, row: int, column: int
) -> None:
    """The click selects the code under the pointer; row and column are counted from 1."""
    visit.sample()
    visit.choose(3)
    visit.tab("Codes")
    codes = generator.encode(samples[2:3])[level][0]
    index = 1 + list(generator.autoencoder.names).index(level)  # after the picture
    image = visit.page.locator(".shown:visible img").nth(index)
    image.wait_for()
    box = image.bounding_box()
    side = min(box["width"], box["height"])  # the map is fitted into the element
    left, upper = (box["width"] - side) / 2, (box["height"] - side) / 2
    height, width = codes.shape
    image.click(position={"x": left + side * (column - 0.5) / width, "y": upper + side * (row - 0.5) / height})
    code = int(codes[row - 1, column - 1])
    visit.status(f"Code {code} of level {level}, at {int((codes == code).sum())} of {height * width} positions.")
    assert visit.page.get_by_label("Row", exact=True).input_value() == str(row)
    assert visit.page.get_by_label("Column", exact=True).input_value() == str(column)
    assert visit.page.locator(".shown:visible img").count() == 5


def press_tab_until(visit: Visit, holds: str) -> None:
    """Press the Tab key until the JavaScript expression of the focused element e is true."""
    for _ in range(80):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate(f"(e => {holds})(document.activeElement)"):
            return
    raise AssertionError(f"no element was focused with {holds}")


def test_the_keyboard_is_enough(visit: Visit, generator: Generator, samples: torch.Tensor) -> None:
    """Sample, select a sample, go to the codes and show one, without the mouse."""
    visit.page.get_by_label("New seed each time").focus()
    visit.page.keyboard.press("Space")
    visit.page.get_by_label("Seed", exact=True).fill("3")
    visit.page.get_by_label("number input for Images").locator("visible=true").fill("4")
    press_tab_until(visit, "e.textContent.trim() === 'Sample' && e.role !== 'tab'")
    visit.page.keyboard.press("Enter")
    visit.status("Done in")
    press_tab_until(visit, "e.tagName === 'BUTTON' && e.querySelector('img')")
    visit.page.keyboard.press("Enter")
    visit.status("Image 1 is now the picture")
    visit.page.keyboard.press("Home")
    visit.page.evaluate("document.activeElement.blur()")
    press_tab_until(visit, "e.role === 'tab' && e.textContent.trim() === 'Codes'")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_label("Row", exact=True).fill("4")
    visit.page.get_by_label("Column", exact=True).fill("2")
    press_tab_until(visit, "e.textContent.trim() === 'Show code'")
    visit.page.keyboard.press("Enter")
    visit.status(f"Code {int(generator.encode(samples[:1])['top'][0, 3, 1])} of level top")
    visit.page.get_by_label("Row", exact=True).fill("8")
    visit.button("Show code").click()
    visit.status("row 8, column 2: level top has no such code")


def test_uploads_are_read_or_refused(visit: Visit, generator: Generator, tmp_path: Path) -> None:
    """A color photograph of another size becomes the picture, in size and mode of the model; damaged files do not."""
    photo, damaged = tmp_path / "photo.jpg", tmp_path / "damaged.png"
    Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 100).convert("RGB").save(photo)
    damaged.write_bytes(b"\x89PNG and no more")
    visit.tab("Codes")
    upload = visit.page.locator("[role=tabpanel]:visible input[type=file]")
    upload.set_input_files(photo)
    visit.status("Scaled and center-cropped to 28x28 pixels.")
    image = visit.page.locator(".shown:visible img").first
    image.wait_for()
    assert (visit.read(image.get_attribute("src")) == generator.read_image(photo)[0, 0].numpy()).all()
    upload.set_input_files(damaged)
    visit.status("damaged.png: cannot be read as an image")


def begin_to_complete(visit: Visit, area: str, completions: str, particles: str) -> None:
    """Begin to complete the first sample."""
    visit.sample()
    visit.choose(1)
    visit.tab("Complete")
    visit.page.get_by_label("Area to sample").click()
    visit.page.get_by_role("option", name=area).click()
    visit.page.get_by_label("number input for Completions").fill(completions)
    visit.page.get_by_label("number input for Particles").fill(particles)
    visit.button("Complete").click()


def begin_long_request(visit: Visit) -> None:
    """Begin to complete 16 times with 64 particles."""
    begin_to_complete(visit, "Center", "16", "64")
    visit.status("Sampling:")


def test_stop_ends_a_request(visit: Visit, page_of_mnist: Served) -> None:
    """The images so far stay."""
    begin_long_request(visit)
    assert len(page_of_mnist.worker.jobs) == 1
    visit.button("Stop").click()
    visit.status("Stopped.")
    wait_until(lambda: not page_of_mnist.worker.jobs, "the end of the request")
    assert 1 <= len(visit.images()) < 16


def test_a_request_ends_when_the_visitor_leaves(chromium: Any, page_of_mnist: Served) -> None:
    """It ends long before its work is finished."""
    visit = Visit(chromium, page_of_mnist.url)
    begin_long_request(visit)
    [[job]] = page_of_mnist.worker.jobs.values()
    shown: list[float] = []
    show = job.show
    job.show = lambda frame: (shown.append(frame.fraction), show(frame))
    visit.close()
    wait_until(lambda: not page_of_mnist.worker.jobs, "the end of the request", SECONDS)
    page_of_mnist.worker.call(lambda: None)  # after all earlier requests
    assert job.cancelled.is_set() and max(shown, default=0) < 1


def test_visitors_take_turns(chromium: Any, visit: Visit, page_of_mnist: Served, samples: torch.Tensor) -> None:
    """The request of a second visitor begins when that of the first one has ended."""
    second = Visit(chromium, page_of_mnist.url)
    begin_long_request(visit)
    second.page.get_by_label("New seed each time").uncheck()
    second.page.get_by_label("Seed", exact=True).fill("3")
    second.page.get_by_label("number input for Images").locator("visible=true").fill("4")
    second.button("Sample").click()
    second.status("Waiting for earlier requests.")
    visit.page.wait_for_timeout(1000)
    assert len(page_of_mnist.worker.jobs) == 1 and not second.images()
    visit.button("Stop").click()
    second.status("Done in")
    assert same(second.images(), samples)
    second.close()
    assert not second.errors
