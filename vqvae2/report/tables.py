"""Tables of the report: every metric with its meaning and whether lower or higher is better."""

from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A row of a table: name and value of a metric, whether lower or higher is better, meaning."""

    name: str
    value: str
    better: str
    meaning: str


def tables(evaluation: dict[str, Any]) -> list[tuple[str, list[Figure]]]:
    """Build (title, rows) of each table from the content of evaluation.json; metrics that are None are left out."""
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
        f"Reconstruction of {found['images']} held-out images",
        [
            ("MSE, pixels in [-1, 1]", found["mse"], "lower", "mean squared error"),
            ("MSE, pixels in [0, 1]", found["mse_0_1"], "lower", "mean squared error, a quarter of the above"),
            ("PSNR, dB", found["psnr"], "higher", "peak signal-to-noise ratio, mean over images"),
            ("SSIM", found["ssim"], "higher", "structural similarity, 1 for equal images"),
            ("LPIPS", found["lpips"], "lower", "learned perceptual distance (AlexNet)"),
            ("PSNR from the coarsest level, dB", alone.get("psnr"), "higher", "decoded from the coarsest codes only"),
        ],
    )
    add(
        "Codebooks",
        [
            (f"{level}: {name}", value, "higher", meaning)
            for level, usage in evaluation["codebook"].items()
            for name, value, meaning in (
                ("usage", usage["usage"], "fraction of the codes in use"),
                ("perplexity", usage["perplexity"], "exp of the entropy of the code frequencies"),
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
                f"NLL on held-out images; on training images: {found[level]['train_nats_per_code']:.3f}",
            )
            for level in evaluation["codebook"]
        ]
        + [
            (
                "bits per dimension",
                found["bits_per_dimension"],
                "lower",
                "upper bound on -log2 p(x): joint of an image and its codes, given its label if any",
            ),
            ("of which codes", found["code_bits_per_dimension"], "lower", "codes under the priors"),
            (
                "of which pixels",
                found["pixel_bits_per_dimension"],
                "lower",
                "pixels under a Gaussian around the reconstruction",
            ),
            (
                "compression by codes",
                found["compression"]["codes"],
                "higher",
                "8 bits per channel of a pixel, compared with log2 K bits per code",
            ),
            (
                "compression by coded codes",
                found["compression"]["coded_codes"],
                "higher",
                "the same for codes with entropy coding under the priors",
            ),
        ],
    )
    for network, title in (
        ("inception", "Inception features"),
        ("classifier_features", "features of the classifier trained on real images"),
    ):
        found = evaluation["fidelity"][network] or {}
        sizes = evaluation["fidelity"]
        add(
            f"Samples in {title}: {sizes['samples']['images']} samples, {sizes['real']['images']} training images",
            [
                (
                    "FID",
                    found.get("fid"),
                    "lower",
                    "Frechet distance; comparable only for equal numbers of images and equal features",
                ),
                ("KID", found.get("kid"), "lower", "kernel distance"),
                ("score", found.get("score"), "higher", "Inception score (IS): confident and varied class predictions"),
                ("precision", found.get("precision"), "higher", "fraction of samples near a real image"),
                ("recall", found.get("recall"), "higher", "fraction of real images near a sample"),
                (
                    "reconstruction FID",
                    found.get("reconstruction_fid"),
                    "lower",
                    "Frechet distance of reconstructions from held-out images",
                ),
            ],
        )
    found = evaluation["classification_accuracy"] or {}
    add(
        "Classification accuracy on real held-out images",
        [
            ("trained on real images", found.get("real"), "higher", f"chance level: {1 / found.get('classes', 1):.3g}"),
            (
                "trained on reconstructions",
                found.get("reconstructions"),
                "higher",
                "class information preserved by the codes",
            ),
            ("trained on samples (CAS)", found.get("samples"), "higher", "Classification Accuracy Score"),
            (
                "samples recognised",
                found.get("samples_recognised"),
                "higher",
                "fraction of samples that the classifier of real images assigns to their class",
            ),
        ],
    )
    return made
