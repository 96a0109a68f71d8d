"""`python -m aepo.integrations.verl OVERRIDES` checks the settings, then starts verl's own main.

It makes all checks that do not need Ray.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aepo.convert import parse_setting
from aepo.errors import InvalidValue
from aepo.integrations.verl.settings import AGENT_LOOP, TRAINER, check_version, read, remarks
from aepo.integrations.verl.state import load, resumed_folder

# These overrides stand before the user's own. `read` and `remarks` say what a change of them breaks.
DEFAULTS = (
    f"trainer.v1.trainer_mode={TRAINER}",
    f"actor_rollout_ref.rollout.agent.default_agent_loop={AGENT_LOOP}",
    "algorithm.adv_estimator=grpo",
    # With chunks verl computes the entropy in float32, also where the logits are bfloat16.
    "actor_rollout_ref.actor.fsdp_config.entropy_from_logits_with_chunking=true",
)
_WORDS: Mapping[str, bool | None] = {"True": True, "False": False, "null": None}


def overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides for verl, the defaults of this package first.

    On the command line `aepo.x=v` needs neither a `+` nor hydra's quotes.
    """
    return [*DEFAULTS, *map(_quoted, arguments)]


def compose(given: Sequence[str]) -> Any:
    """Return verl's configuration with these overrides.

    Raises:
        InvalidValue: hydra cannot read an override.
    """
    import verl  # noqa: F401  (without this import hydra would hide why verl is missing)
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException

    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose("ppo_trainer", overrides=list(given))
    except HydraException as error:
        wanted = "settings that verl's ppo_trainer has, or aepo.NAME=VALUE"
        raise InvalidValue("overrides", str(error).splitlines()[0], wanted) from None


def main(arguments: Sequence[str]) -> None:
    """Check the settings and train; a setting that does not work raises `InvalidValue`."""
    check_version()
    given = overrides(arguments)
    config = compose(given)
    chosen, folder = read(config), resumed_folder(config)
    if folder is not None:
        load(folder, chosen)  # The trainer would refuse it, too, but with the model loaded.
    for sentence in remarks(config):
        print(f"note: {sentence}", file=sys.stderr)
    check_plugin()
    from verl.trainer import main_ppo

    sys.argv = ["verl", *given]
    main_ppo.main()


def check_plugin() -> None:
    """Refuse to start if the trainer is not registered in verl.

    verl hides an error that happens while it loads a plug-in; this function raises that error.
    """
    import verl  # noqa: F401
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    if TRAINER not in TRAINER_REGISTRY:
        import aepo.integrations.verl.plugin  # noqa: F401  (raises the hidden error)

        wanted = "installed with pip, so that every process of verl finds the entry point verl.plugins"
        raise InvalidValue("aepo", "a package that verl does not see", wanted)


def _quoted(argument: str) -> str:
    """Return `aepo.x=v` as hydra reads it; v may be written as in TOML, as in Python or for hydra.

    A later value of the same setting counts (`++`).
    """
    bare = argument.lstrip("+")
    if not bare.startswith("aepo."):
        return argument
    name, value = parse_setting(bare)
    if isinstance(value, str) and value[:1] in ("{", "["):
        return f"++{name}={value}"
    return f"++{name}={_for_hydra(_WORDS.get(value, value) if isinstance(value, str) else value)}"


def _for_hydra(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_for_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_for_hydra, value)) + "]"
    return json.dumps(value)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InvalidValue as error:
        print(f"aepo: {error}", file=sys.stderr)
        sys.exit(2)
