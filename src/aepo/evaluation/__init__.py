"""This package is `aepo evaluate`: it samples benchmarks, files and tasks, and computes scores (docs/evaluation.md)."""
