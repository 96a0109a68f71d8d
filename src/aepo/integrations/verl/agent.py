"""verl's single-turn agent loop, at a temperature of each request's own."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from aepo.integrations.verl.settings import AGENT_LOOP

TEMPERATURE = "aepo_temperature"


@register(AGENT_LOOP)
class TemperedSingleTurn(SingleTurnAgentLoop):  # type: ignore[misc]
    """Reads the field `aepo_temperature` of a prompt; prompts without it, those of validation, keep verl's."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **fields: Any) -> Any:
        """One completion."""
        if TEMPERATURE in fields:
            sampling_params = {**sampling_params, "temperature": float(fields[TEMPERATURE])}
        return await super().run(sampling_params, priority, **fields)
