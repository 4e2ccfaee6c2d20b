"""The VAE's terms against independent references, its bounds on a model whose likelihood is known, and its variants."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.family.small import BATCH, build, setting, stripes
from vqvae2.autoencoder.likelihood import pixel_nats
from vqvae2.errors import UserError
from vqvae2.family.cvae import CVAE
from vqvae2.family.observation import Bernoulli, gaussian_nats
from vqvae2.family.vae import VAE, Gaussian
from vqvae2.images.loading import ImageBatch


def random_gaussian(seed: int, batch: int = 5, dim: int = 3) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    return Gaussian(*(torch.randn(batch, dim, generator=generator, dtype=torch.float64) for _ in range(2)))


def reference(gaussian: Gaussian) -> Independent:
    return Independent(Normal(gaussian.mean, gaussian.log_deviation.exp()), 1)


def test_the_kl_divergence_is_that_of_torch_distributions():
    q, p = random_gaussian(0), random_gaussian(1)
    assert torch.allclose(q.kl(p), kl_divergence(reference(q), reference(p)))
    z = random_gaussian(2).mean
    assert torch.allclose(q.log_density(z), reference(q).log_prob(z))


def test_the_kl_divergence_is_the_mean_of_the_log_ratio_of_the_densities():
    model = build("vae")
    q = Gaussian(*(0.5 * x for x in random_gaussian(0, batch=1)))
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, many = q.draw(noise), Gaussian(*(x.expand(len(noise), -1) for x in q))
    labels = torch.zeros(len(noise), dtype=torch.long)
    log_ratios = many.log_density(z) - model.log_prior(z, labels)
    error = log_ratios.std() / math.sqrt(len(noise))
    assert abs(log_ratios.mean() - model.rate(q, labels[:1])) < 4 * error


class LinearGaussian(VAE):
    """p(z) = N(0, I), p(x|z) = N(W z, 0.5^2), whose p(x) = N(0, W W^T + 0.25 I) is known, with a given posterior."""

    weights = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.2]], dtype=torch.float64)

    def __init__(self, spread: float):
        super().__init__(setting(), latent_dim=2)
        precision = torch.eye(2, dtype=torch.float64) + self.weights.T @ self.weights / 0.25
        self.gain = torch.linalg.solve(precision, self.weights.T) / 0.25  # of the exact posterior's mean
        self.deviation = spread * precision.inverse().diagonal().sqrt()

    def posterior(self, images: Tensor, labels: Tensor) -> Gaussian:
        mean = images.flatten(1) @ self.gain.T
        return Gaussian(mean, self.deviation.log().expand_as(mean))

    def distortion(self, images: Tensor, z: Tensor, labels: Tensor) -> Tensor:
        return -Independent(Normal(z @ self.weights.T, 0.5), 1).log_prob(images.flatten(1))

    def exact(self, images: Tensor) -> Tensor:
        covariance = self.weights @ self.weights.T + 0.25 * torch.eye(3, dtype=torch.float64)
        return -MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(images.flatten(1))


def test_the_importance_weighted_bound_tightens_to_the_exact_likelihood():
    """One sample gives the evidence lower bound, more samples a tighter bound, many the likelihood."""
    model = LinearGaussian(spread=1.5)
    x = torch.randn(400, 1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.zeros(len(x), dtype=torch.long)

    def bound(samples: int) -> float:
        return model.importance_weighted(x, labels, torch.Generator().manual_seed(1), samples).mean().item()

    one_draw = model.bound(x, labels, torch.Generator().manual_seed(1))
    z = model.posterior(x, labels).draw(torch.randn(len(x), 2, generator=torch.Generator().manual_seed(1)))
    log_ratio = model.posterior(x, labels).log_density(z) - model.log_prior(z, labels)
    assert bound(1) == pytest.approx((model.distortion(x, z, labels) + log_ratio).mean().item(), abs=1e-3)
    assert bound(1) == pytest.approx((one_draw.rate + model.distortion(x, z, labels)).mean().item(), abs=0.15)
    exact = model.exact(x).mean().item()
    values = [bound(samples) for samples in (1, 4, 16, 64)]
    assert values == sorted(values, reverse=True) and values[0] > exact + 0.1
    assert bound(1000) == pytest.approx(exact, abs=0.01)


def test_the_discretised_gaussian_is_that_of_the_autoencoder_with_finite_gradients():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[:, 0, 0], images[:, 1, 1] = 0, 255
    means = torch.randn(images.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    for deviation in (0.003, 0.1, 2.0):
        log_deviation = torch.tensor(math.log(deviation), dtype=torch.float64, requires_grad=True)
        nats = gaussian_nats(images, means, log_deviation)
        assert torch.allclose(nats, pixel_nats(images, means.detach(), deviation**2))
        nats.sum().backward()
        assert means.grad.isfinite().all() and log_deviation.grad.isfinite()


def test_bernoulli_pixels_sum_to_one_and_have_their_probability_as_mean():
    logits = torch.tensor([-1.2, 0.4]).view(2, 1, 1, 1)
    black, white = (Bernoulli().nats(logits, torch.full((2, 1, 1, 1), x, dtype=torch.uint8)) for x in (0, 255))
    assert torch.allclose((-black).exp() + (-white).exp(), torch.ones(2))
    assert torch.equal(Bernoulli().mean(logits).flatten(), ((-white).exp() * 255).round().to(torch.uint8))


def losses_and_gradients(model: VAE, batch: ImageBatch) -> tuple[float, dict[str, Tensor]]:
    loss = model(batch, 0).total
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if "label" not in name}


def test_a_conditional_vae_with_one_class_is_a_vae():
    batch = stripes()._replace(labels=torch.zeros(BATCH, dtype=torch.long))
    vae, cvae = build("vae", classes=1), build("cvae", classes=1)
    missing = cvae.load_state_dict(vae.state_dict(), strict=False).missing_keys
    assert missing == ["encoder.label.weight", "decoder.label.weight"]
    (loss, gradients), (other, others) = (losses_and_gradients(x, batch) for x in (vae, cvae))
    assert loss == other and gradients.keys() == others.keys()
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_the_label_reaches_encoder_decoder_and_prior():
    cvae = build("cvae", conditional_prior=True)
    assert isinstance(cvae, CVAE) and cvae.label_prior is not None
    batch = stripes()
    cvae(batch, 0).total.backward()
    for weight in (cvae.encoder.label.weight, cvae.decoder.label.weight, cvae.label_prior.weight):
        assert (weight.grad.abs().sum(1) > 0).all()


def test_a_conditional_vae_refuses_images_without_classes():
    with pytest.raises(UserError, match="classes"):
        build("cvae", classes=0)


def test_beta_weighs_the_rate_in_the_loss_alone():
    batch = stripes()
    vae, beta_vae = build("vae"), build("beta_vae", beta=3.0)
    plain, weighted = vae(batch, 0), beta_vae(batch, 0)
    assert weighted.total.item() == pytest.approx((plain.total + 2 * plain.metrics["rate"]).item())
    bounds = [x.nll(batch.images, batch.labels, torch.Generator().manual_seed(0)) for x in (vae, beta_vae)]
    assert torch.equal(*bounds)
