"""This package loads language models, scores batches with them, and trains the built-in base model."""
