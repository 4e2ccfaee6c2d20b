"""Serving of the page, on this machine only unless another address is given."""

import errno
import importlib.metadata
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vqvae2.errors import UserError
from vqvae2.generation.generator import Generator

OLDEST_GRADIO = (6, 31)  # as in pyproject.toml
LARGEST_UPLOAD = "50mb"
LONGEST_QUEUE = 20  # waiting requests; others are refused
INSTALL = 'run pip install "vqvae2[demo]"'
# Nothing is sent to other machines, and no proxy is asked for this one.
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
LOOPBACK = "127.0.0.1"
LOCAL = f"{LOOPBACK},localhost,::1"
# parts of Gradio that the page does not need
OFF: dict[str, Any] = {
    "share": False,
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "mcp_server": False,
    "pwa": False,
}


def check_gradio() -> None:
    """Check that Gradio is installed.

    Raises:
        UserError: it is not installed, or too old.
    """
    try:
        version = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the demo needs the package gradio: {INSTALL}") from None
    if tuple(map(int, version.split(".")[:2])) < OLDEST_GRADIO:
        oldest = ".".join(map(str, OLDEST_GRADIO))
        raise UserError(f"the demo needs gradio {oldest} or newer, and {version} is installed: {INSTALL}")


def check_address(host: str, port: int) -> None:
    """Check that the page can be served at this address.

    Raises:
        UserError: the port is in use or not permitted, or the host is not an address of this machine.
    """
    if not 1 <= port <= 65535:
        raise UserError(f"port: {port} is not valid: use a number from 1 to 65535")
    for address in {host.strip("[]"): None, LOOPBACK: None}:  # Gradio tries the port on loopback, too
        _check_port(address, port)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except PermissionError:
        raise UserError(f"port: {port} is reserved: use a number from 1024 to 65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(port) from None
        raise UserError(
            f"host: {host!r} is not an address of this machine: use 127.0.0.1, or 0.0.0.0 for all its addresses"
        ) from error


def _in_use(port: int) -> UserError:
    other = port + 1 if port < 65535 else port - 1
    return UserError(f"port: {port} is in use: choose another one with --port, such as {other}")


def serve(generator: Generator, name: str, host: str, port: int) -> None:
    """Serve the page of a model until Ctrl-C is pressed or SIGTERM is received; arguments as for `served`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the files of visitors are deleted
    with served(generator, name, host, port) as address:
        print(f"demo: {address} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextmanager
def served(generator: Generator, name: str, host: str, port: int) -> Iterator[str]:
    """Context manager in which the page of a model is served; its value is the address.

    Args:
        generator: the trained models.
        name: name of the model, for the title.
        host: address to listen on.
        port: port to listen on.

    Raises:
        UserError: a prior of the model is missing, or the port is in use.
    """
    generator.fingerprint()  # loads all priors, which fails if one is missing
    host = host.strip("[]")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(ENVIRONMENT, GRADIO_TEMP_DIR=folder)
        for key in ("no_proxy", "NO_PROXY"):
            os.environ[key] = ",".join(x for x in (os.environ.get(key), LOCAL, host) if x)
        # not at the top: gradio is an extra and reads the environment
        import gradio as gr

        from vqvae2.demo.page import build_page
        from vqvae2.demo.style import CSS

        page = build_page(generator, name, Path(folder))
        page.queue(max_size=LONGEST_QUEUE)
        try:
            page.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                theme=gr.themes.Default(primary_hue="blue"),
                css=CSS,
                footer_links=["settings"],
                max_file_size=LARGEST_UPLOAD,
                prevent_thread_lock=True,
                quiet=True,
                **OFF,
            )
        except OSError as error:  # another program has taken the port since it was checked
            raise _in_use(port) from error
        logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)
        try:
            yield page.local_url
        finally:
            page.close(verbose=False)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Whether a log record is not about a visitor who left while a file was being sent."""
    return record.exc_info is None or type(record.exc_info[1]).__name__ != "ClientDisconnect"
