"""What verl loads in each of its processes (entry point `verl.plugins`): registers the trainer and the agent loop.

verl swallows what fails here, so the launcher checks that both are there.
"""

from aepo.integrations.verl.settings import check_version

check_version()

from aepo.integrations.verl import agent, trainer  # noqa: E402, F401
