"""The models that VQ-VAE is compared with, on the same blocks, loop, images and metrics. The pipeline imports none."""
