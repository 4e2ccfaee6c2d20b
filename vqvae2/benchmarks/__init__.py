"""Speed of the parts of a run, where possible compared with a limit for the machine; see pipelines/benchmark.py."""
