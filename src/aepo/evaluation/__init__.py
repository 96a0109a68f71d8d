"""`aepo evaluate`: benchmarks, files and tasks, sampled to the end and summed up (docs/evaluation.md)."""
