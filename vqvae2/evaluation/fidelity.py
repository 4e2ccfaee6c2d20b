"""Distances between sets of images in the features of a network, by torch-fidelity's functions."""

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from vqvae2.evaluation.classifier import Seen

KID_SUBSET = 1000  # images; at most half of a set, or all subsets would be alike and have no deviation
SCORE_SPLITS = 10  # of the Inception score, from this many thousand images on; else one
NEIGHBOURS = 3  # whose distance is the radius of precision and recall
FEWEST_IMAGES = NEIGHBOURS + 2  # on either side, for a distance to mean anything


def frechet_distance(features: Tensor, others: Tensor) -> float | None:
    """Frechet distance of the Gaussians with the sets' means and covariances (Heusel et al. 2017, equation 6).

    None where a set has fewer than FEWEST_IMAGES.
    """
    if min(len(features), len(others)) < FEWEST_IMAGES:
        return None
    statistics = [fid_features_to_statistics(x.double()) for x in (features, others)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def fidelity(samples: Seen, real: Seen) -> dict[str, float | None]:
    """Metrics of samples against real images.

    Returns:
        fid: Frechet distance, of all images.
        kid, kid_std: kernel distance (Binkowski et al. 2018), mean and deviation over 100 subsets.
        score: exp of the mean divergence of class probabilities from their mean (Salimans et al. 2016).
        precision, recall: share of one set within the reach of the other (Kynkaanniemi et al. 2019).
        All None where a set has fewer than FEWEST_IMAGES.
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
    """precision: share of the samples (N, F) within reach of a real image; recall: the other way round."""
    metrics = prc_features_to_metric(samples, real, prc_neighborhood=NEIGHBOURS, verbose=False)
    return {name: metrics[name] for name in ("precision", "recall")}


def nearest(features: Tensor, others: Tensor, count: int) -> Tensor:
    """Indices of the `count` nearest of `others` for each row of `features`, nearest first: (N, count)."""
    return torch.cdist(features, others).topk(min(count, len(others)), largest=False).indices
