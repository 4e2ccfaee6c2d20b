"""Vector quantisation (Oord et al. 2017, section 3): features to the nearest code vectors of a codebook."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Numbers in the N x K block of distances held at a time: 8 MiB, within a processor's cache.
DISTANCES_AT_ONCE = 2**21


class Quantised(NamedTuple):
    """What the quantiser makes of features (B, D, H, W).

    Attributes:
        vectors: the nearest code vectors (B, D, H, W); their gradient is the features' (straight-through).
        codes: the codes (B, H, W), int64.
        features: the features in the precision they were quantised in, cut off from the graph.
        commitment_loss: mean squared distance, with a gradient for the features only; not yet times beta.
        codebook_loss: the same number, with a gradient for the codebook only.
    """

    vectors: Tensor
    codes: Tensor
    features: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code vector nearest to each of `vectors`: (N, D), (K, D) -> (N,) int64.

    By |x - e|^2 = |x|^2 - 2 x.e + |e|^2, of which the first term does not
    matter: one matrix product, a block of rows at a time.
    """
    squares = codebook.square().sum(1)
    rows = max(1, DISTANCES_AT_ONCE // len(codebook))
    blocks = [torch.addmm(squares, block, codebook.T, alpha=-2).argmin(1) for block in vectors.split(rows)]
    return torch.cat(blocks)


class Quantiser(nn.Module):
    """A codebook of K vectors of D dimensions, and the way from features to codes and back.

    Works in the codebook's own precision inside any autocast.

    Example:
        >>> quantiser = Quantiser(codebook_size=2, code_dim=1, learned=False)
        >>> _ = quantiser.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
        >>> quantiser(torch.tensor([0.2, -3.0]).view(1, 1, 1, 2)).codes
        tensor([[[1, 0]]])
    """

    def __init__(self, codebook_size: int, code_dim: int, learned: bool):
        """`learned`: the codebook follows a gradient, else its owner sets it (see codebooks.py)."""
        super().__init__()
        self.learned = learned
        self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim), requires_grad=learned)

    def forward(self, features: Tensor) -> Quantised:
        """(B, D, H, W) in any precision -> Quantised."""
        codes = self.encode(features)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.codebook.dtype)
            nearest = self.look_up(codes)
            commitment_loss = F.mse_loss(features, nearest.detach())
            codebook_loss = F.mse_loss(nearest, features.detach()) if self.learned else commitment_loss.detach()
            vectors = nearest.detach() + (features - features.detach())
        return Quantised(vectors, codes, features.detach(), commitment_loss, codebook_loss)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """(B, D, H, W) in any precision -> the nearest codes (B, H, W), int64."""
        with torch.autocast(features.device.type, enabled=False):
            flat = rearrange(features.to(self.codebook.dtype), "b d h w -> (b h w) d")
            codes = nearest_codes(flat, self.codebook)
        return codes.view(features.shape[0], *features.shape[2:])

    def pass_through(self, features: Tensor) -> Quantised:
        """(B, D, H, W) -> the same as vectors, while the codebook is not started: codes and losses are zero."""
        codes = torch.zeros_like(features[:, 0], dtype=torch.long)
        nothing = 0 * self.codebook.sum()
        return Quantised(features, codes, features.detach().to(self.codebook.dtype), nothing, nothing)

    def mean_vector(self) -> Tensor:
        """The mean of the codebook, (1, D, 1, 1), without a gradient: what stands for an unknown code."""
        return rearrange(self.codebook.detach().mean(0), "d -> 1 d 1 1")

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes (B, H, W) -> their code vectors (B, D, H, W)."""
        return rearrange(self.codebook[codes], "b h w d -> b d h w")
