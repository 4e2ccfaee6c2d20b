"""The tables of a report: every figure with what it means and which way is better."""

from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A line of the table: name, value, which way is better, meaning."""

    name: str
    value: str
    better: str
    meaning: str


def tables(evaluation: dict[str, Any]) -> list[tuple[str, list[Figure]]]:
    """The metrics of evaluation.json with what each means."""
    made = []

    def add(title: str, rows: list[tuple[str, Any, str, str]]) -> None:
        lines = [
            Figure(name, value if isinstance(value, str) else f"{value:.4g}", better, meaning)
            for name, value, better, meaning in rows
            if value is not None
        ]
        if lines:
            made.append((title, lines))

    found = evaluation["reconstruction"]
    alone = found.get("coarsest_alone", {})
    add(
        f"Reconstruction of {found['images']} held-out pictures",
        [
            ("MSE, pixels in [-1, 1]", found["mse"], "lower", "mean squared error"),
            ("MSE, pixels in [0, 1]", found["mse_0_1"], "lower", "the same on another scale"),
            ("PSNR, dB", found["psnr"], "higher", "peak signal-to-noise ratio, mean over pictures"),
            ("SSIM", found["ssim"], "higher", "structural similarity, 1 is equality"),
            ("LPIPS", found["lpips"], "lower", "learned perceptual distance"),
            ("PSNR from the coarsest level alone, dB", alone.get("psnr"), "higher", "what the coarsest codes hold"),
        ],
    )
    add(
        "Codebooks",
        [
            (f"{level}: {name}", value, "higher", meaning)
            for level, usage in evaluation["codebook"].items()
            for name, value, meaning in (
                ("usage", usage["usage"], "share of the codes that occur"),
                ("perplexity", usage["perplexity"], "codes in use, weighed by how often"),
            )
        ],
    )
    found = evaluation["likelihood"]
    add(
        "Likelihood",
        [
            (
                f"{level}: nats per code",
                found[level]["nats_per_code"],
                "lower",
                f"held out; training {found[level]['train_nats_per_code']:.3f}",
            )
            for level in evaluation["codebook"]
        ]
        + [
            ("bits per dimension", found["bits_per_dimension"], "lower", "of -log p(x): codes and pixels given codes"),
            ("of which codes", found["code_bits_per_dimension"], "lower", "what the priors make of the codes"),
            ("of which pixels", found["pixel_bits_per_dimension"], "lower", "a Gaussian around the reconstruction"),
            (
                "compression by codes",
                found["compression"]["codes"],
                "higher",
                "24-bit pixels against log2 K bits a code",
            ),
            ("compression by coded codes", found["compression"]["coded_codes"], "higher", "codes coded by the priors"),
        ],
    )
    for network, title in (
        ("inception", "Inception's features"),
        ("classifier_features", "the features of the run's own classifier"),
    ):
        found = evaluation["fidelity"][network] or {}
        sizes = evaluation["fidelity"]
        add(
            f"Samples in {title}: {sizes['samples']['images']} samples, {sizes['real']['images']} training pictures",
            [
                ("FID", found.get("fid"), "lower", "Frechet distance; comparable only at equal counts and features"),
                ("KID", found.get("kid"), "lower", "kernel distance"),
                ("score", found.get("score"), "higher", "classes told apart and all of them seen (IS)"),
                ("precision", found.get("precision"), "higher", "share of samples among the real pictures"),
                ("recall", found.get("recall"), "higher", "share of real pictures among the samples"),
                (
                    "reconstruction FID",
                    found.get("reconstruction_fid"),
                    "lower",
                    "of held-out pictures and their reconstructions",
                ),
            ],
        )
    found = evaluation["classification_accuracy"] or {}
    add(
        "Classification accuracy on real held-out pictures",
        [
            ("trained on real pictures", found.get("real"), "higher", f"chance: {1 / found.get('classes', 1):.3g}"),
            (
                "trained on reconstructions",
                found.get("reconstructions"),
                "higher",
                "what the codes keep of the classes",
            ),
            ("trained on samples (CAS)", found.get("samples"), "higher", "what the priors keep of them"),
            ("samples recognised", found.get("samples_recognised"), "higher", "samples whose class the first tells"),
        ],
    )
    return made
