"""Shared parts of all scripts: run directory, lock, signals, processes, precision, seeds and command line."""
