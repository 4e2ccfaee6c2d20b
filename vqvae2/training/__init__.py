"""The training loop shared by stages 1, 3 and 4; it does not depend on the kind of data."""
