"""This package analyses the logs of runs: reports, comparisons, tracking of the target, the law fit, and the watch."""
