"""`aepo compare`: methods x targets x seeds from one file, at equal cost."""
