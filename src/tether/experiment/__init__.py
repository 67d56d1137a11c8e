"""Grids of runs: what they are, what they found, how they are run."""
