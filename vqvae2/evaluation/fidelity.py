"""Metrics of samples against real images in the feature space of a network, computed with torch-fidelity."""

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from vqvae2.evaluation.classifier import Seen

KID_SUBSET = 1000  # images per subset; at most half of a set is used, or the subsets would be equal
SCORE_SPLITS = 10  # splits of the Inception score for sets of at least 10,000 images; smaller sets use one split
NEIGHBOURS = 3  # k of precision and recall: the radius is the distance to the k-th nearest neighbor
ROWS = 1000  # of distances to all images at a time: 200 MB for 50,000 images, where all rows would take 10 GB
FEWEST_IMAGES = NEIGHBOURS + 2  # smallest set of images that metrics are computed for


def frechet_distance(features: Tensor, others: Tensor) -> float | None:
    """Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

    Returns None if a set has fewer than FEWEST_IMAGES images.
    """
    if min(len(features), len(others)) < FEWEST_IMAGES:
        return None
    statistics = [fid_features_to_statistics(x.double()) for x in (features, others)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def fidelity(samples: Seen, real: Seen) -> dict[str, float | None]:
    """Compute all metrics of samples against real images.

    Returns:
        fid: Frechet distance over all images.
        kid, kid_std: kernel distance (Binkowski et al. 2018), mean and standard deviation over 100 subsets.
        score: Inception score, exp of the mean KL divergence of class probabilities from their mean (Salimans et al.
            2016).
        precision, recall: see `precision_and_recall`.
        All values are None if a set has fewer than FEWEST_IMAGES images.
    """
    fewest = min(len(samples.features), len(real.features))
    if fewest < FEWEST_IMAGES:
        return dict.fromkeys(("fid", "kid", "kid_std", "score", "precision", "recall"))
    kid = kid_features_to_metric(
        samples.features, real.features, kid_subset_size=min(KID_SUBSET, fewest // 2), verbose=False
    )
    splits = SCORE_SPLITS if len(samples.logits) >= 1000 * SCORE_SPLITS else 1
    return {
        "fid": frechet_distance(samples.features, real.features),
        "kid": float(kid["kernel_inception_distance_mean"]),
        "kid_std": float(kid["kernel_inception_distance_std"]),
        "score": isc_features_to_metric(samples.logits, splits)["inception_score_mean"],
        **precision_and_recall(samples.features, real.features),
    }


def precision_and_recall(samples: Tensor, real: Tensor) -> dict[str, float]:
    """Precision and recall in feature space (Kynkaanniemi et al. 2019); features are (N, F).

    precision: fraction of the samples that lie within the radius of a real image. recall: fraction of the real images
    that lie within the radius of a sample. The radius of an image is the distance to its nearest neighbor number
    NEIGHBOURS in its own set.
    """
    metrics = prc_features_to_metric(
        samples, real, prc_neighborhood=NEIGHBOURS, prc_batch_size=ROWS, save_cpu_ram=True, verbose=False
    )
    return {name: metrics[name] for name in ("precision", "recall")}


def nearest(features: Tensor, others: Tensor, count: int) -> Tensor:
    """Indices (N, count) of the `count` rows of `others` nearest to each row of `features`, nearest first."""
    return torch.cdist(features, others).topk(min(count, len(others)), largest=False).indices
