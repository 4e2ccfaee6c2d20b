"""Images to codes and back: the quantiser, the hierarchical autoencoder, and the care of its codebooks."""
