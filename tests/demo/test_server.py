"""Refusals of pipelines/demo.py before anything is loaded. None of them needs Gradio."""

import importlib.metadata
import ipaddress
import socket

import pytest

from tests.conftest import refusal, succeed
from vqvae2.demo import server
from vqvae2.demo.server import check_address
from vqvae2.errors import UserError


@pytest.fixture
def with_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that Gradio is installed; the models are refused before it is used."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.31.0")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_without_the_extra_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert 'pip install "vqvae2[demo]"' in refusal("demo", "--model", "mnist")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.49.1")
    message = refusal("demo", "--model", "mnist")
    assert "gradio 6.31 or newer" in message and "5.49.1" in message and 'pip install "vqvae2[demo]"' in message


def test_a_port_in_use_is_refused(with_gradio: None) -> None:
    """Also if it is in use on the loopback address alone, which Gradio tries, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = refusal("demo", "--model", "mnist", "--port", str(port))
        with pytest.raises(UserError, match="in use"):
            check_address("127.0.0.2", port)
    assert f"port: {port} is in use" in message and "--port" in message
    check_address("127.0.0.1", free_port())


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("127.0.0.1", 0, "port: 0 is not valid"),
        ("127.0.0.1", 65536, "port: 65536"),
        ("203.0.113.7", 7860, "host: '203"),
        ("[2001:db8::7]", 7860, "host: '2001"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(host: str, port: int, said: str) -> None:
    """203.0.113.0/24 is reserved for documentation, so that no machine has such an address."""
    with pytest.raises(UserError, match=said):
        check_address(host, port if port != 7860 else free_port())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "give one of them"),
        (("--model", "mnist", "--run_dir", "runs/x"), "give one of them"),
        (("--model", "no_such_model"), "no_such_model"),
        (("--run_dir", "no/such/run"), "no/such/run"),
    ],
)
def test_a_missing_model_is_refused(with_gradio: None, flags: tuple[str, ...], said: str) -> None:
    assert said in refusal("demo", *flags, "--port", str(free_port()))


def test_by_default_only_this_machine_can_use_the_page(with_gradio: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(server, "serve", lambda generator, name, host, port: asked.append((name, host)))
    succeed("demo", "--model", "mnist", "--port", str(free_port()))
    [(name, host)] = asked
    assert name == "mnist" and ipaddress.ip_address(host).is_loopback
