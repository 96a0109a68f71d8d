"""Entropy control on verl's V1 trainer, for clusters (docs/engines/verl.md).

python -m aepo.integrations.verl aepo.method=aepo aepo.target=0.6x data.train_files=... (verl's own overrides)

`plugin` is what verl loads in every process (entry point `verl.plugins`); the modules here that need no verl are
`settings`, `rows` and `loss`.
"""
