"""`python -m aepo.integrations.verl OVERRIDES`: check all that can be checked without Ray, then verl's own main."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from aepo.checks import InvalidValue
from aepo.integrations.verl.settings import AGENT_LOOP, TRAINER, check_version, read, remarks
from aepo.settings import parse_setting

# Before the user's own overrides, which may change them and are then told why not.
DEFAULTS = (
    f"trainer.v1.trainer_mode={TRAINER}",
    f"actor_rollout_ref.rollout.agent.default_agent_loop={AGENT_LOOP}",
    "algorithm.adv_estimator=grpo",
)


def overrides(arguments: Sequence[str]) -> list[str]:
    """verl's overrides of the command line; `aepo.x=v` needs neither a + nor hydra's quotes."""
    return [*DEFAULTS, *map(_quoted, arguments)]


def compose(given: Sequence[str]) -> Any:
    """verl's configuration with these overrides."""
    import verl  # noqa: F401  (hydra would say that there is no such module, and not why)
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(given))


def main(arguments: Sequence[str]) -> None:
    """Refuse in one line, or train."""
    check_version()
    given = overrides(arguments)
    config = compose(given)
    read(config)
    for sentence in remarks(config):
        print(f"note: {sentence}", file=sys.stderr)
    check_plugin()
    from verl.trainer import main_ppo

    sys.argv = ["verl", *given]
    main_ppo.main()


def check_plugin() -> None:
    """verl swallows what fails while a plug-in loads."""
    import verl  # noqa: F401
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    if TRAINER not in TRAINER_REGISTRY:
        import aepo.integrations.verl.plugin  # noqa: F401  (says why)

        wanted = "installed with pip, so that every process of verl finds the entry point verl.plugins"
        raise InvalidValue("aepo", "a package that verl does not see", wanted)


def _quoted(argument: str) -> str:
    bare = argument.lstrip("+")
    if not bare.startswith("aepo."):
        return argument
    name, value = parse_setting(bare)
    if isinstance(value, str):
        return f"+{name}={json.dumps(value)}"
    return f"+{name}={json.dumps(value) if isinstance(value, bool | int | float) else bare.split('=', 1)[1]}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InvalidValue as error:
        print(f"aepo: {error}", file=sys.stderr)
        sys.exit(2)
