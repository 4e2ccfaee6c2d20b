"""Sampling new images from a trained run."""
