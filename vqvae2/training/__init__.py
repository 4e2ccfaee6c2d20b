"""The one training loop and what it needs; it knows no image and no code store."""
