"""Level dropout in the objective of the autoencoder."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from vqvae2.autoencoder.artefact import build_autoencoder
from vqvae2.autoencoder.objective import CONTINUOUS_LEVEL_DROPOUT, AutoencoderObjective
from vqvae2.config import AutoencoderConfig, LevelConfig

BATCH = 64
STEPS = 8
STRIDES = {"top": 8, "middle": 4, "bottom": 2}


def shown_levels(levels: int, level_dropout: float, continuous_steps: int) -> list[Tensor | None]:
    """Return, for each of STEPS steps, how many levels of each image are shown to the decoders."""
    names = list(STRIDES)[:levels]
    config = AutoencoderConfig(
        [LevelConfig(name, STRIDES[name], codebook_size=4, code_dim=2) for name in names],
        hidden_channels=2,
        residual_channels=1,
        residual_layers=0,
        continuous_steps=continuous_steps,
        level_dropout=level_dropout,
    )
    autoencoder = build_autoencoder(config, channels=1, seed=0)
    objective = AutoencoderObjective(autoencoder, BATCH, total_steps=2 * STEPS, seed=0)
    batch = SimpleNamespace(images=torch.zeros(BATCH, 1, 8, 8), batch_indices=torch.arange(BATCH))
    drawn = []

    def model(images: Tensor, shown_levels: Tensor | None, quantises: bool) -> object:
        assert quantises == (continuous_steps == 0)
        drawn.append(shown_levels)
        return autoencoder(images, shown_levels, quantises)

    for step in range(STEPS):
        objective.loss(model, batch, step)
    return drawn


@pytest.mark.parametrize("levels", [2, 3])
def test_level_dropout_hides_finer_levels_of_its_share_of_images(levels: int) -> None:
    """The coarsest level is never hidden, and all numbers of hidden levels are about equally frequent.

    The images with hidden levels change at each step.
    """
    drawn = torch.stack(shown_levels(levels, level_dropout=0.6, continuous_steps=0))
    counts = torch.bincount(drawn.flatten(), minlength=levels + 1) / drawn.numel()
    expected = torch.tensor([0.0, *[0.6 / (levels - 1)] * (levels - 1), 0.4])
    assert torch.allclose(counts, expected, atol=0.07)
    assert counts[0] == 0
    assert not torch.equal(drawn[0], drawn[1])


def test_without_level_dropout_every_level_is_shown() -> None:
    """Without level dropout, all levels are shown."""
    assert shown_levels(2, level_dropout=0.0, continuous_steps=0) == [None] * STEPS


def test_while_nothing_is_quantised_levels_are_hidden_whatever_the_level_dropout() -> None:
    """Before quantization starts, CONTINUOUS_LEVEL_DROPOUT is used instead of `level_dropout`."""
    drawn = torch.stack(shown_levels(2, level_dropout=0.0, continuous_steps=STEPS))
    assert (drawn == 1).double().mean() == pytest.approx(CONTINUOUS_LEVEL_DROPOUT, abs=0.07)


def test_of_one_level_nothing_is_hidden() -> None:
    """With a single level, nothing is hidden."""
    assert (torch.stack(shown_levels(1, level_dropout=0.0, continuous_steps=STEPS)) == 1).all()
