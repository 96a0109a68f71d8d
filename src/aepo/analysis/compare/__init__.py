"""This package implements `aepo compare`: it runs methods x targets x seeds from one file, at equal cost."""
