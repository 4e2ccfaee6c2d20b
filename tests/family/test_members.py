"""Training of every model on one batch, and what is known about the parts of each."""

import math

import pytest
import torch
from torch import Tensor

from tests.family.small import BATCH, build, stripes, trained
from vqvae2.autoencoder.likelihood import pixel_nats
from vqvae2.family.autoencoder import DeterministicAutoencoder
from vqvae2.family.member import Member
from vqvae2.family.observation import FIRST_DEVIATION
from vqvae2.family.vae_gan import VAEGAN
from vqvae2.family.vqvae import VQVAE, Probabilities, bernoulli_nats

NAMES = ("autoencoder", "vae", "beta_vae", "cvae", "vae_gan", "vqvae", "vqvae2")


def error(member: Member) -> float:
    batch = stripes(member.setting.observation)
    with torch.no_grad():
        again = member.eval().reconstruct(batch.images, batch.labels)
    return (again.float() - batch.images.float()).square().mean().item()


@pytest.mark.parametrize(
    ("name", "observation"), [*((name, "bernoulli") for name in NAMES), ("vae", "gaussian"), ("vqvae", "gaussian")]
)
def test_training_brings_reconstructions_closer(name: str, observation: str):
    member = build(name, observation, beta=1.5)
    batch, generator = stripes(observation), torch.Generator().manual_seed(0)
    before = error(member)
    losses = trained(member.train(), batch, steps=30)
    share = 0.95 if name == "vae_gan" else 0.75  # the VAE-GAN does not compare pixels
    assert all(torch.isfinite(torch.tensor(losses))) and error(member) < share * before
    with torch.no_grad():
        samples = member.sample(3, batch.labels[:3], generator)
        bound = member.bound(batch.images, batch.labels, generator)
        nll = member.nll(batch.images, batch.labels, generator)
    assert samples.dtype == torch.uint8 and samples.shape == (3, 1, 8, 8)
    assert (bound is None) == (name == "autoencoder") and (nll is None) == (name in ("autoencoder", "vae_gan"))
    if bound is not None:
        assert (bound.rate >= 0).all()


def test_black_and_white_pixels_that_are_almost_certainly_wrong_have_a_gradient():
    logits = torch.tensor([14.0, -14.0, 0.0]).view(1, 1, 1, 3).requires_grad_()
    nats = bernoulli_nats(torch.tensor([0, 255, 255]).view(1, 1, 1, 3), Probabilities()(logits))
    assert nats.item() == pytest.approx(2 * -math.log(1e-5 + math.exp(-14)) + math.log(2), rel=1e-2)
    (slope,) = torch.autograd.grad(nats.sum(), logits)
    assert slope.flatten().tolist() == pytest.approx([0.077, -0.077, -0.5], rel=0.1)


def test_the_samples_of_the_autoencoder_come_from_the_mean_and_covariance_of_its_latents():
    member = build("autoencoder")
    assert isinstance(member, DeterministicAutoencoder)
    batch = stripes()
    with torch.no_grad():
        halves = [type(batch)(*(x[part] for x in batch)) for part in (slice(0, 10), slice(10, None))]
        member.eval().finish(halves, lambda x: x)
        z = member.encoder.encode(batch.images).double()
    assert torch.allclose(member.latent_mean.double(), z.mean(0), atol=1e-6)
    factor = member.latent_factor.double()
    assert torch.allclose(factor @ factor.T, torch.cov(z.T, correction=0), atol=1e-6)


def gradients(member: VAEGAN, weights: dict[str, float]) -> dict[str, Tensor | None]:
    """Gradients of the loss with other weights: its parts are the rate, features, deception and detection."""
    member.zero_grad()
    member.setting.config.__dict__["adversarial_weight"] = weights["deception"]
    member(stripes(), 0).total.backward()
    return {name: p.grad.clone() for name, p in member.named_parameters() if p.grad is not None}


def test_each_loss_of_the_vae_gan_trains_its_parts_alone():
    """The adversarial weight changes the gradient of the decoder alone, and the discriminator learns to tell."""
    member = build("vae_gan")
    assert isinstance(member, VAEGAN)
    plain, adversarial = gradients(member, {"deception": 0.0}), gradients(member, {"deception": 5.0})
    changed = {name.split(".")[0] for name in plain if not torch.allclose(plain[name], adversarial[name])}
    assert changed == {"decoder"} and {name.split(".")[0] for name in plain} == {"encoder", "decoder", "discriminator"}

    batch = stripes()
    optimiser = torch.optim.Adam(member.discriminator.parameters(), 3e-3)
    detection = []
    for _ in range(20):  # updates of the discriminator alone lower its own loss
        loss = member(batch, 0)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        detection.append(loss.metrics["detection"].item())
    assert detection[-1] < 0.5 * detection[0]


def test_a_discriminator_that_cannot_tell_costs_a_logarithm_of_two_for_each_image_it_judges():
    """With logits of 0 for all images, -log D = log 2: twice for the decoder, three times for the discriminator."""
    member = build("vae_gan")
    assert isinstance(member, VAEGAN)
    for parameter in member.discriminator.trunk.write.parameters():
        parameter.data.zero_()
    metrics = member(stripes(), 0).metrics
    assert metrics["deception"].item() == pytest.approx(2 * math.log(2), rel=1e-5)
    assert metrics["detection"].item() == pytest.approx(3 * math.log(2), rel=1e-5)


def test_the_bound_of_vq_vae_is_that_of_its_codes_and_of_the_pixels_given_them():
    member = build("vqvae2", "gaussian")
    assert isinstance(member, VQVAE)
    batch = stripes("gaussian")
    trained(member, batch, steps=25)
    with torch.no_grad():
        codes = member.codes(batch.images, batch.labels)
        means = member.autoencoder(batch.images).images
        bound = member.bound(batch.images, batch.labels, torch.Generator())
        rate = torch.zeros(BATCH)
        for name, prior in member.priors.items():
            logits = prior(codes[name], {x.name: codes[x.name] for x in prior.coarser} or None, None)
            rate -= logits.log_softmax(1).gather(1, codes[name][:, None]).sum(dim=(1, 2, 3))
    variance = (2 * member.autoencoder.pixels.log_deviation).exp().item()
    assert abs(variance / FIRST_DEVIATION**2 - 1) > 0.1  # it is learned
    assert torch.allclose(bound.rate, rate, rtol=1e-4)
    assert torch.allclose(bound.distortion, pixel_nats(batch.images, means, variance).float(), rtol=1e-4)


def test_the_loss_of_vq_vae_for_black_and_white_pixels_is_their_likelihood():
    member = build("vqvae")
    batch = stripes()
    with torch.no_grad():
        member.eval()
        loss = member.objective.loss(member.autoencoder, batch, step=0)
        nats = member.bound(batch.images, batch.labels, torch.Generator()).distortion
        white = (member.autoencoder(batch.images, quantises=False).images + 1) / 2
    expected = torch.nn.functional.binary_cross_entropy(white, batch.images / 255)
    assert loss.metrics["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert (nats > 0).all()


def test_training_the_prior_does_not_change_the_autoencoder():
    member = build("vqvae")
    member(stripes(), member.objective.start_step).total.backward()
    with_prior = {name: p.grad.clone() for name, p in member.autoencoder.named_parameters() if p.grad is not None}
    member.zero_grad()
    member.objective.loss(member.autoencoder, stripes(), member.objective.start_step).total.backward()
    assert with_prior and all(
        torch.equal(with_prior[name], p.grad) for name, p in member.autoencoder.named_parameters() if p.grad is not None
    )
