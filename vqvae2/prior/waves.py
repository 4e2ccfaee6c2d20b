"""Waves of positions that are sampled together.

With a stride S, position (i, j) belongs to wave j + i * S. A position depends only on codes to the left in its own
row and on codes up to column j + k * S - 1 of the row k above, which all belong to earlier waves. The positions of a
wave, one in each row in flight, are therefore computed together.

The vertical stack advances by one position in each row and wave. Its kernels read codes to the right of a position,
so after layer l it is `lag` columns behind the codes: the sum of the kernels' columns to the right up to layer l.
"""

import torch
from torch import Tensor

from vqvae2.prior.prior import Prior


def num_waves(prior: Prior) -> int:
    """Number of waves until all codes of a grid are sampled."""
    return prior.grid.width + (prior.grid.height - 1) * prior.stride()


class Wavefront:
    """The positions of the current wave.

    `update` computes them from the number of the wave in a tensor, so that a CUDA graph can capture it. A row stays in
    flight beyond its last column until the vertical stack has reached it.

    Attributes:
        num_waves: number of waves until all codes are sampled.
        wave: the current wave, int64 (1,).
        rows: rows in flight, int64 (F,).
        columns: the column of each row in flight, int64 (F,).
        code_rows: the last N rows in flight, in which a code is sampled, int64 (N,).
        code_columns: their columns, int64 (N,).
        inside: whether these positions are inside the grid, bool (N,).
        positions: index of these positions in raster order, int64 (N,); H * W for those outside the grid.
    """

    def __init__(self, prior: Prior, device: torch.device):
        self.height, self.width, self.stride = prior.grid.height, prior.grid.width, prior.stride()
        self.columns_in_flight = self.width + sum(layer.right for layer in prior.layers)
        self.num_waves = num_waves(prior)
        self.max_rows = min(self.height, -(-self.columns_in_flight // self.stride))
        self.wave = torch.zeros(1, dtype=torch.long, device=device)
        self.offsets = torch.arange(self.max_rows, device=device)
        self.num_codes = self.max_rows

    def begin(self, wave: int) -> None:
        """Go to a wave; call `update` next."""
        self.wave.fill_(wave)
        if not self.wave.is_cuda:  # a CUDA graph has a fixed number of rows, some of them outside the grid
            self.offsets = torch.arange(self._rows_with(self.columns_in_flight, wave))
            self.num_codes = self.codes_in(wave)

    def codes_in(self, wave: int) -> int:
        """Number of codes per image in a wave."""
        return self._rows_with(self.width, wave)

    def finished(self, wave: int) -> Tensor:
        """Which codes are sampled after a wave, bool (H * W,)."""
        positions = torch.arange(self.height * self.width, device=self.wave.device)
        return positions % self.width + positions // self.width * self.stride <= wave

    def _rows_with(self, columns: int, wave: int) -> int:
        """Number of rows of the grid whose column in a wave is from 0 to `columns` - 1."""
        first = max(0, (wave - columns) // self.stride + 1)
        return max(0, min(self.height, wave // self.stride + 1) - first)

    def update(self) -> None:
        """Compute rows, columns and positions of the wave."""
        first = ((self.wave - self.columns_in_flight) // self.stride + 1).clamp(min=0)
        self.rows = first + self.offsets
        self.columns = self.wave - self.rows * self.stride
        start = len(self.offsets) - self.num_codes
        self.code_rows, self.code_columns = self.rows[start:], self.columns[start:]
        self.inside = self.is_inside(self.code_rows, self.code_columns)
        index = self.code_rows * self.width + self.code_columns
        self.positions = torch.where(self.inside, index, self.height * self.width)

    def is_inside(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether positions are inside the grid."""
        return (rows >= 0) & (rows < self.height) & (columns >= 0) & (columns < self.width)

    def nearest(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Index in raster order of the positions of the grid nearest to `rows` (F,) and `columns` (..., F)."""
        return rows.clamp(max=self.height - 1) * self.width + columns.clamp(0, self.width - 1)


class Ring:
    """The vectors that L layers wrote in the last waves; reading a position outside the grid gives zeros."""

    def __init__(self, like: Tensor, layers: int, batch: int, waves: int, rows: int, channels: int):
        self.layers, self.batch, self.waves, self.rows = layers, batch, waves, rows
        size = waves * rows + 2
        self.zero, self.unused = size - 2, size - 1  # entries for positions outside the grid: to read, to write
        self.vectors = like.new_zeros(layers * batch * size, channels)
        self.offsets = size * torch.arange(layers * batch, device=like.device).view(layers, batch, 1)

    def read(self, waves: Tensor, rows: Tensor, inside: Tensor) -> Tensor:
        """Read T vectors of each of F positions and concatenate them: (layers, B * F, T * channels).

        Args:
            waves: the waves in which they were written, (T,) or (layers, 1, T).
            rows: the rows for which they were written, (F, T).
            inside: whether they are inside the grid, (layers or 1, F, T).
        """
        index = self._index(waves, rows, inside, self.zero)
        return self.vectors.index_select(0, index).view(self.layers, self.batch * len(rows), -1)

    def write(self, wave: Tensor, rows: Tensor, inside: Tensor, vectors: Tensor) -> None:
        """Write a vector for each row.

        Args:
            wave: the current wave, (1,).
            rows: the rows, (F,).
            inside: whether the positions are inside the grid, (layers or 1, F); others are not written.
            vectors: (layers, B * F, channels).
        """
        index = self._index(wave, rows[:, None], inside[..., None], self.unused)
        self.vectors.index_copy_(0, index, vectors.flatten(0, 1))

    def reorder(self, images: Tensor) -> None:
        """Let image i of the batch continue as a copy of image `images[i]`."""
        by_image = self.vectors.view(self.layers, self.batch, -1, self.vectors.shape[1])
        by_image.copy_(by_image[:, images])

    def _index(self, waves: Tensor, rows: Tensor, inside: Tensor, outside: int) -> Tensor:
        index = torch.where(inside, waves % self.waves * self.rows + rows % self.rows, outside)
        return (self.offsets + index.flatten(1)[:, None]).flatten()
