"""This package adds entropy control to verl's V1 trainer, for clusters (docs/engines/verl.md).

python -m aepo.integrations.verl aepo.method=aepo aepo.target=0.6x data.train_files=... (verl's own overrides)

verl loads the module `plugin` in each of its processes (entry point `verl.plugins`). The modules `settings`, `rows` and
`state` do not import verl.
"""
