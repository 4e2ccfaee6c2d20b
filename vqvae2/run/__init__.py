"""What every program of a run needs: folder, lock, signals, processes, precision, seeds, command line."""
