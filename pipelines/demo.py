"""Serve a page to play with a trained run or a published model: sample, complete, resample, look at codes."""

from dataclasses import dataclass

from vqvae2.run.command_line import parse_options, run


@dataclass(frozen=True)
class Options:
    """Flags of demo.py.

    Attributes:
        run_dir: directory of a run whose stages have all finished.
        model: instead of run_dir, a bundled model such as mnist, a folder of publish.py, or a repository USER/NAME.
        host: address to listen on; 127.0.0.1: this machine only; 0.0.0.0: all addresses of this machine, no password.
        port: port to listen on.
        dtype: auto (bfloat16 if the hardware supports it natively, else float32), float32 or bfloat16.
    """

    run_dir: str | None = None
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    dtype: str = "auto"


def main() -> None:
    options = parse_options(Options, __doc__)

    # not at the top: PyTorch slows --help down
    from pathlib import Path

    from vqvae2.demo.server import check_address, check_gradio, serve
    from vqvae2.generation.opening import open_generator

    check_gradio()
    check_address(options.host, options.port)
    generator = open_generator(options.run_dir, options.model, dtype=options.dtype)
    name = Path(options.run_dir or options.model or "").resolve().name
    serve(generator, name, options.host, options.port)


if __name__ == "__main__":
    run(main)
