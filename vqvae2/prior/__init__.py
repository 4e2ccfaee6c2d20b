"""Autoregressive priors over the codes of a level, and drawing codes from them."""
