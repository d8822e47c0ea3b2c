"""What the papers claim, run as experiments: `python -m experiments.NAME --scale small`."""
