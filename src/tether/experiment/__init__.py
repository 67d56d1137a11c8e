"""Grids of runs: what they are, what they found, how they are run."""

from tether.experiment.grid import Outcome, run_grid
from tether.experiment.parquet import read_grid, write_grid
from tether.experiment.plan import Job, Plan, make_plan
from tether.experiment.results import StoredGrid, StoredRun
from tether.experiment.run import Step
from tether.experiment.spec import GridSpec, grid_names, read_spec

__all__ = [
    "GridSpec", "Job", "Outcome", "Plan", "Step", "StoredGrid", "StoredRun", "grid_names", "make_plan", "read_grid",
    "read_spec", "run_grid", "write_grid",
]  # fmt: skip
