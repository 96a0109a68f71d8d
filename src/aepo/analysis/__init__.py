"""This package analyses the logs of runs: reports, comparisons, fits of control laws, and the watch."""
