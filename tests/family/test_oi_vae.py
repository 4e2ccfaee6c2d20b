"""The output-interpretable VAE: its proximal step, what a column of zeros means, and one latent for each bar."""

from dataclasses import replace

import torch
from torch import Tensor

from tests.family.small import BATCH, TRAIN, build, setting, stripes, trained
from vqvae2.family.oi_vae import OIVAE
from vqvae2.family.pictures import CELL, cells_of
from vqvae2.images.loading import ImageBatch


def small(**options: object) -> OIVAE:
    member = build("oi_vae", group_rows=2, **options)
    assert isinstance(member, OIVAE)
    return member


def test_the_proximal_step_minimizes_the_distance_plus_the_weighted_norm():
    """prox(v) = argmin over w of |w - v|^2 / 2 + t |w|: the subgradient of that contains 0 in each column."""
    member = small()
    before, threshold = member.decoder.first.detach().clone(), member.group_weights().median()
    member.decoder.shrink(threshold)
    after, norms = member.decoder.first, member.group_weights()
    zero = norms == 0
    assert 0 < zero.double().mean() < 1
    assert (before.norm(dim=1)[zero] <= threshold).all()
    gradient = after - before + threshold * after / norms.clamp(min=1e-9)[:, None]
    assert gradient.norm(dim=1)[~zero].max() < 1e-5


def test_a_column_of_zeros_cuts_a_latent_off_from_its_group_alone():
    member = small()
    with torch.no_grad():
        member.decoder.first[1, :, 2] = 0
    z = torch.randn(1, 4)
    influence = torch.func.jacrev(lambda z: member.decoder.decode(z)[0, 0])(z)[:, :, 0]  # (8, 8, 4)
    by_group = influence.abs().amax(1).view(4, 2, 4).amax(1)
    assert torch.equal(by_group == 0, member.group_weights() == 0)
    assert (by_group == 0).sum() == 1 and by_group[1, 2] == 0


def test_each_group_has_a_generator_of_its_own():
    member = small()
    d, z = member.decoder, torch.randn(3, 4)
    expected = []
    for g in range(4):
        x = torch.relu(z @ d.first[g].T + d.first_bias[g])
        x = torch.relu(x @ d.hidden[g].T + d.hidden_bias[g])
        expected.append((x @ d.last[g].T + d.last_bias[g]).view(3, 1, 2, 8))
    assert torch.allclose(d.decode(z), torch.cat(expected, dim=2), atol=1e-5)


def test_a_skipped_update_shrinks_nothing():
    member = small()
    before = member.group_weights()
    member.end_step(0, torch.tensor(False), lambda x: x)
    assert torch.equal(member.group_weights(), before)
    member.end_step(0, torch.tensor(True), lambda x: x)
    assert (member.group_weights() < before).all()


def bars(seed: int) -> ImageBatch:
    """Noisy images with one bright row each."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(2 * BATCH) % 8
    images = 40 + 10 * torch.randn(len(rows), 1, 8, 8, generator=generator)
    images[torch.arange(len(rows)), 0, rows] += 60 + 60 * torch.rand(len(rows), 1, generator=generator)
    return ImageBatch(images.clamp(0, 255).to(torch.uint8), rows, *[torch.arange(len(rows))] * 2)


def test_each_latent_ends_with_one_group_on_the_bars_data():
    """As on the paper's bars: a latent that is left makes one row, and there are none to spare."""
    torch.manual_seed(0)
    train = replace(TRAIN, batch_size=2 * BATCH, learning_rate=4e-2, total_steps=350)
    member = OIVAE(replace(setting("gaussian", latent_dim=12, group_rows=1, sparsity=0.6, units=64), train=train))
    trained(member, bars, train.total_steps)
    weights = member.group_weights()
    weights = weights[:, weights.sum(0) > 0]
    assert (weights.amax(0) > 0.8 * weights.sum(0)).all()
    assert len(weights.argmax(0).unique()) >= 7 and weights.shape[1] <= 9


def test_the_picture_of_the_weights():
    image: Tensor = cells_of(torch.tensor([[0.0, 1.0, 2.0]]))
    assert image.shape == (1, CELL, 3 * CELL)
    assert image[0, 0, ::CELL].tolist() == [0, 128, 255]


def test_training_brings_reconstructions_closer():
    member, batch = small(sparsity=0.1), stripes()
    losses = trained(member, batch, steps=80)
    assert losses[-1] < 0.8 * losses[0]
