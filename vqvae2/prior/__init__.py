"""Autoregressive priors over the codes of a level, and sampling codes from them."""
