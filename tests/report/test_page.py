"""The HTML report of an evaluated run and of a run that is still training."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vqvae2.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page(evaluated_run: Path) -> Path:
    return evaluated_run / "report.html"


def test_it_stands_alone_and_every_picture_has_a_text(page: Path):
    """The page refers to no external files, and every image has an alt text."""
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "@import" not in text and "url(" not in text
    pictures = re.findall(r"<img [^>]*>", text)
    assert len(pictures) >= 4 + 5  # 4 images; curves of loss, usage, perplexity and two priors
    assert all(re.search(r'alt="[^"]{20,}"', x) for x in pictures)


def test_it_shows_every_part(page: Path):
    """The page contains every section."""
    text = page.read_text()
    for part in ("PSNR", "perplexity", "bits per dimension", "FID", "trained on samples (CAS)", "nats per code",
                 "temperatures 0.7", "nearest training images", "codebook_size", "torchvision"):  # fmt: skip
        assert part in text, part


def test_a_run_that_still_trains_has_a_page(evaluated_run: Path, tmp_path: Path):
    """The report of an unfinished run contains the curves and the latest reconstructions; a run may also be empty."""
    shutil.copytree(evaluated_run / "stage1", tmp_path / "young" / "stage1")
    text = write_report(tmp_path / "young").read_text()
    assert "has not been evaluated yet" in text and "Stage 1: usage" not in text.split("<h2>Curves")[0]
    assert len(re.findall(r"<img ", text)) == 4
    write_report(tmp_path)  # an empty directory


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_chromium_opens_it_without_complaint(page: Path, tmp_path: Path):
    """Chromium renders the page without console messages."""
    shot = tmp_path / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,900", f"--screenshot={shot}",
               page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shot.exists(), done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
