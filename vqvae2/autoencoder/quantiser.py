"""Vector quantization: replace features with the nearest code vectors of a codebook (Oord et al. 2017, section 3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Elements of the N x K distance matrix computed at a time: 8 MiB in float32, which fits into a CPU cache.
DISTANCES_AT_ONCE = 2**21


class Quantised(NamedTuple):
    """The quantizer output for features (B, D, H, W).

    Attributes:
        vectors: nearest code vectors (B, D, H, W); gradients pass to the features unchanged (straight-through).
        codes: indices of these code vectors (B, H, W), int64.
        features: the features in the precision they were quantized in, detached.
        commitment_loss: mean squared error with a gradient for the features only; not multiplied by beta.
        codebook_loss: the same value with a gradient for the codebook only.
    """

    vectors: Tensor
    codes: Tensor
    features: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code vector nearest to each of `vectors`: (N, D), (K, D) -> (N,) int64.

    Uses |x - e|^2 = |x|^2 - 2 x.e + |e|^2. The first term does not change the minimum, so the distances take one
    matrix product, computed in blocks of rows.
    """
    squares = codebook.square().sum(1)  # (K,)
    rows = max(1, DISTANCES_AT_ONCE // len(codebook))
    blocks = [torch.addmm(squares, block, codebook.T, alpha=-2).argmin(1) for block in vectors.split(rows)]
    return torch.cat(blocks)


class Quantiser(nn.Module):
    """A codebook of K code vectors of dimension D that maps features to codes and codes to code vectors.

    Computes in the precision of the codebook, also inside autocast.

    Example:
        >>> quantiser = Quantiser(codebook_size=2, code_dim=1, learned=False)
        >>> _ = quantiser.codebook.copy_(torch.tensor([[-1.0], [1.0]]))
        >>> quantiser(torch.tensor([0.2, -3.0]).view(1, 1, 1, 2)).codes
        tensor([[[1, 0]]])
    """

    def __init__(self, codebook_size: int, code_dim: int, learned: bool):
        """Create a random codebook.

        Args:
            codebook_size: number of code vectors, K.
            code_dim: dimension of a code vector, D.
            learned: whether the codebook is trained by gradient; if False, `Codebooks` updates it.
        """
        super().__init__()
        self.learned = learned
        self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim), requires_grad=learned)

    def forward(self, features: Tensor) -> Quantised:
        """Quantize features (B, D, H, W) of any precision."""
        codes = self.encode(features)  # (B, H, W)
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.codebook.dtype)
            nearest = self.look_up(codes)  # (B, D, H, W)
            commitment_loss = F.mse_loss(features, nearest.detach())
            codebook_loss = F.mse_loss(nearest, features.detach()) if self.learned else commitment_loss.detach()
            vectors = nearest.detach() + (features - features.detach())
        return Quantised(vectors, codes, features.detach(), commitment_loss, codebook_loss)

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """The nearest codes (B, H, W), int64, of features (B, D, H, W) of any precision."""
        with torch.autocast(features.device.type, enabled=False):
            flat = rearrange(features.to(self.codebook.dtype), "b d h w -> (b h w) d")  # (N, D)
            codes = nearest_codes(flat, self.codebook)  # (N,)
        return codes.view(features.shape[0], *features.shape[2:])  # (B, H, W)

    def pass_through(self, features: Tensor) -> Quantised:
        """Return features (B, D, H, W) as vectors, before the codebook is initialized; codes and losses are zero."""
        codes = torch.zeros_like(features[:, 0], dtype=torch.long)
        nothing = 0 * self.codebook.sum()
        return Quantised(features, codes, features.detach().to(self.codebook.dtype), nothing, nothing)

    def mean_vector(self) -> Tensor:
        """The mean code vector (1, D, 1, 1), without a gradient; used where a code is not known."""
        return rearrange(self.codebook.detach().mean(0), "d -> 1 d 1 1")

    def look_up(self, codes: Tensor) -> Tensor:
        """The code vectors (B, D, H, W) of codes (B, H, W)."""
        return rearrange(self.codebook[codes], "b h w d -> b d h w")

    def look_up_known(self, codes: Tensor) -> Tensor:
        """As `look_up`, with the mean code vector where a code is negative."""
        known = (codes >= 0)[..., None]  # (B, H, W, 1)
        vectors = torch.where(known, self.codebook[codes.clamp(min=0)], self.codebook.mean(0))  # (B, H, W, D)
        return rearrange(vectors, "b h w d -> b d h w")
