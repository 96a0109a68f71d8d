"""This package trains a policy in one run: its steps, run folder, checkpoints, evaluations, logs and plot."""
