"""How fast the parts are, beside the limit that the machine sets for each; see pipelines/benchmark.py."""
