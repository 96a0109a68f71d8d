"""This package holds the parts of the loss: advantages, surrogates, aggregates and the policy loss itself."""
