"""This package computes the exact entropy and the log-probabilities of tokens from hidden states or logits."""
