"""The hierarchical autoencoder: its quantizer, codebook updates, training objective and validation."""
