"""Sequential Monte Carlo (Doucet et al. 2001): completions conditioned on all kept codes, also on those that follow.

Each image is sampled as N particles. Where a code is kept, a particle is weighted by the probability that the prior
gives this code, so a particle whose free codes do not fit the kept ones that follow loses weight. Particles are
resampled when few of them hold most of the weight, and at the end one is chosen by its weight.
"""

import torch
from torch import Tensor


class Particles:
    """Weighted particles of a batch of images; particle p of image i is row i * N + p of a batch.

    Attributes:
        count: particles per image, N.
        log_weights: (images, N), up to a constant for each image.
        ancestors: index from 0 to N - 1 of the first particle that each particle descends from, (images, N).
        origins: row of the batch that each particle descends from since the level began, (images * N,).
    """

    def __init__(self, images: int, count: int, uniforms: dict[str, Tensor]):
        """Start with equal weights.

        Args:
            images: number of images.
            count: particles per image.
            uniforms: for each level by name, a number in [0, 1) for each image and wave, (images, waves).
        """
        like = next(iter(uniforms.values()))
        self.count = count
        self.uniforms = uniforms
        self.log_weights = like.new_zeros(images, count)
        self.ancestors = torch.arange(count, device=like.device).expand(images, -1).contiguous()
        self.first = count * torch.arange(images, device=like.device)[:, None]  # (images, 1): row of particle 0

    def begin_level(self) -> None:
        """Let `origins` be the present rows."""
        self.origins = torch.arange(self.ancestors.numel(), device=self.ancestors.device)

    def weigh(self, log_probabilities: Tensor) -> None:
        """Multiply the weights by the probabilities (images * N,) of kept codes."""
        self.log_weights += log_probabilities.view_as(self.log_weights)

    def effective_sizes(self) -> Tensor:
        """Effective sample size of each image, (images,): N for equal weights, 1 if one particle has all weight."""
        return 1 / self.log_weights.softmax(1).square().sum(1)

    def resample(self, level: str, wave: int) -> Tensor | None:
        """After a wave, resample the images whose effective sample size is below N / 2, by systematic resampling.

        Returns:
            The former row of each particle, (images * N,); None if no image was resampled.
        """
        poor = self.effective_sizes() < self.count / 2
        if not poor.any():
            return None
        same = torch.arange(self.count, device=poor.device)
        chosen = self._inverse((same + self.uniforms[level][:, wave, None]) / self.count)  # (images, N)
        chosen = torch.where(poor[:, None], chosen, same)
        self.log_weights.masked_fill_(poor[:, None], 0)
        self.ancestors = self.ancestors.gather(1, chosen)
        rows = (self.first + chosen).flatten()
        self.origins = self.origins[rows]
        return rows

    def choose(self, uniforms: Tensor) -> Tensor:
        """Draw a particle of each image by its weight and return its row, (images,); `uniforms` is (images,)."""
        return (self.first + self._inverse(uniforms[:, None]))[:, 0]

    def _inverse(self, uniforms: Tensor) -> Tensor:
        """Invert the cumulative weights of each image at `uniforms` (images, n): particles, int64 (images, n)."""
        cumulative = self.log_weights.softmax(1).cumsum(1)
        found = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
        return found.clamp(max=self.count - 1)  # a uniform number may be rounded to 1

    def surviving(self) -> Tensor:
        """Share of the first particles that have descendants, (images,)."""
        ordered = self.ancestors.sort(1).values
        return ((ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1) / self.count
