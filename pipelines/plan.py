"""Plan a run before it starts: memory, hours, disk and cores of each stage, without its images.

Prints a table. Any field of the configuration can be set. With device cpu, a training step of each stage is timed.
"""

from vqvae2.run.command_line import parse_config, run


def main() -> None:
    options = {
        "processes": (int, 1, "number of processes, one per GPU"),
        "num_images": (int | None, None, "number of training images (default: images.max_images, if it is set)"),
        "num_classes": (int | None, None, "number of classes, 0: none (default: 1000, or those of the shapes)"),
        "device": (str | None, None, "h100, h200, a100, rtx4090 or cpu (default: this GPU if listed, else cpu)"),
    }
    config, values = parse_config(description=__doc__, **options)

    from vqvae2.planning.devices import this_device  # not at the top: importing PyTorch slows --help down
    from vqvae2.planning.plan import plan

    device = values["device"] or this_device()
    print(plan(config, values["processes"], values["num_images"], values["num_classes"], device))


if __name__ == "__main__":
    run(main)
