"""A page in the browser to sample images, complete and resample them, and look at their codes."""
