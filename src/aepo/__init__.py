"""Reinforcement fine-tuning of language models at an entropy that you set."""

__version__ = "0.1.0"
