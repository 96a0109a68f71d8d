"""This module registers the trainer and the agent loop; verl loads it in each of its processes.

verl finds it by the entry point `verl.plugins`. verl hides an error that happens here, so the launcher checks that the
trainer is registered.
"""

from aepo.integrations.verl.settings import check_version

check_version()

from aepo.integrations.verl import agent, trainer  # noqa: E402, F401
