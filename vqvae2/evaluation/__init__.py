"""Evaluation of a finished run: metrics on held-out images and of samples."""
