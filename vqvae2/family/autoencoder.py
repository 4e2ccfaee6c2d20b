"""The deterministic autoencoder, for comparison (Hinton and Salakhutdinov 2006, with convolutions).

It minimizes -log p(x | z) for z = encoder(x), without any term for z, so that nothing says where the latents of images
lie. Samples are decoded from a Gaussian with the mean and covariance of the latents of the training images: the
latents of images are not distributed like that, which is why an autoencoder is not a generative model.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from vqvae2.family.member import Member, Setting
from vqvae2.family.moments import mean_and_covariance
from vqvae2.family.observation import pixels_of
from vqvae2.family.trunk import Trunk
from vqvae2.images.loading import ImageBatch
from vqvae2.training.objective import Loss, Reduce


class DeterministicAutoencoder(Member):
    """Encoder, latents (B, D), decoder, and a Gaussian that `finish` fits to the latents of the training images."""

    latent_mean: Tensor
    latent_factor: Tensor

    def __init__(self, setting: Setting):
        super().__init__(setting)
        dim = setting.config.latent_dim
        self.encoder = Trunk(setting, outputs=dim)
        self.decoder = Trunk(setting, inputs=dim)
        self.pixels = pixels_of(setting.observation)
        self.register_buffer("latent_mean", torch.zeros(dim))
        self.register_buffer("latent_factor", torch.eye(dim))  # factor @ factor.T is the covariance

    def forward(self, batch: ImageBatch, step: int) -> Loss:
        output = self.decoder.decode(self.encoder.encode(batch.images))
        distortion = self.pixels.nats(output, batch.images).mean()
        return Loss(distortion, {"distortion": distortion.detach()})

    def finish(self, batches: Iterable[ImageBatch], reduce: Reduce) -> None:
        latents = (self.encoder.encode(batch.images) for batch in batches)
        mean, covariance = mean_and_covariance(latents, self.latent_mean, reduce)
        values, vectors = torch.linalg.eigh(covariance)
        self.latent_mean.copy_(mean)
        self.latent_factor.copy_(vectors * values.clamp(min=0).sqrt())

    def reconstruct(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.pixels.mean(self.decoder.decode(self.encoder.encode(images)))

    def sample(self, num: int, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(num, len(self.latent_mean), generator=generator).to(labels.device)
        return self.pixels.mean(self.decoder.decode(self.latent_mean + noise @ self.latent_factor.T))
