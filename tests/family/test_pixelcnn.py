"""The causal decoder: it is normalized and causal, it learns, and its samples depend on the latents as they should."""

from itertools import product

import pytest
import torch

from tests.family.small import BATCH, TRAIN, setting, stripes, trained
from vqvae2.errors import UserError
from vqvae2.family.member import Setting
from vqvae2.family.pixelcnn import CausalDecoder, PixelCNN, PixelCNNDeltaVAE, PixelCNNVAE, PixelCNNVQVAE

SIZES = {"causal_channels": 8, "causal_layers": 2, "causal_kernel_size": 3}
MEMBERS = [PixelCNN, PixelCNNVAE, PixelCNNDeltaVAE, PixelCNNVQVAE]


def test_probabilities_of_all_images_sum_to_one():
    """Given any picture, the probabilities of all black and white images of 3x3 pixels sum to 1."""
    torch.manual_seed(0)
    small = Setting(setting(**SIZES).config, 1, (3, 3), 0, "bernoulli", TRAIN, seed=0)
    decoder = CausalDecoder(small, conditioned=True).double()
    everything = 255 * torch.tensor(list(product((0, 1), repeat=9)), dtype=torch.uint8).view(-1, 1, 3, 3)
    picture = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        nats = decoder.nats(everything, picture.expand(len(everything), -1, -1, -1))
    assert (-nats.double()).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert nats.std() > 0.01


@pytest.mark.parametrize("kind", MEMBERS)
def test_training_lowers_the_nats_and_samples_look_like_the_images(kind: type):
    torch.manual_seed(0)
    member = kind(setting(sequence_length=4, sequence_dim=1, delta=1.0, **SIZES))
    batch, generator = stripes(), torch.Generator().manual_seed(0)
    losses = trained(member.train(), batch, steps=15)
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        bound = member.bound(batch.images, batch.labels, generator)
        samples = member.sample(8, batch.labels[:8], generator)
        member.reconstruct(batch.images[:2], batch.labels[:2])
    assert set(samples.unique().tolist()) <= {0, 255}
    if kind is PixelCNN:
        assert (bound.rate == 0).all() and member.exchange_loss(batch.images, batch.labels, generator) is None
    if kind is PixelCNNDeltaVAE:
        assert (bound.rate >= 1.0).all()


@pytest.mark.parametrize("kind", MEMBERS[1:])
def test_exchanged_latents_lose_nothing_without_and_something_with_their_influence(kind: type):
    """With one picture for all, the distortion is that of the decoder alone; a picture with influence changes it."""
    torch.manual_seed(0)
    member, batch = kind(setting(sequence_length=4, sequence_dim=1, delta=1.0, **SIZES)), stripes()
    if kind is PixelCNNVQVAE:
        trained(member.train(), batch, steps=15)  # so that images have codes of their own
        member.eval()
    causal = member.autoencoder.causal if kind is PixelCNNVQVAE else member.causal
    causal.picture.weight.data.zero_()
    causal.picture.bias.data.zero_()
    with torch.no_grad():
        lost = member.exchange_loss(batch.images, batch.labels, torch.Generator().manual_seed(0))
        distortion = member.bound(batch.images, batch.labels, torch.Generator().manual_seed(0)).distortion
        assert torch.equal(lost, torch.zeros(BATCH))
        assert torch.allclose(distortion, causal.nats(batch.images, torch.zeros(BATCH, 1, 8, 8)))
        causal.picture.weight.data.normal_(std=30)
        lost = member.exchange_loss(batch.images, batch.labels, torch.Generator().manual_seed(0))
    assert lost.abs().max() > 1e-3


def test_colour_is_refused():
    colour = Setting(setting().config, 3, (8, 8), 0, "gaussian", TRAIN, seed=0)
    with pytest.raises(UserError, match=r"images\.channels: 3"):
        PixelCNN(colour)
