"""This package holds what is done before a run: calibrate settings, estimate cost, and do a dry run."""
