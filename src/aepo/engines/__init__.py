"""This package holds what all training engines share: capabilities, stages of a step, collation and preflight."""
