"""New images from a trained run."""
