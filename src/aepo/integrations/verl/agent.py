"""`TemperedSingleTurn` is verl's single-turn agent loop with a temperature for each request."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from aepo.engines.ends import end_of_turn
from aepo.integrations.verl.settings import AGENT_LOOP

TEMPERATURE = "aepo_temperature"


@register(AGENT_LOOP)
class TemperedSingleTurn(SingleTurnAgentLoop):  # type: ignore[misc]
    """`TemperedSingleTurn` draws a completion at the temperature in the prompt's field `aepo_temperature`.

    Prompts of validation do not have the field, so they keep verl's temperature. A completion ends at the chat
    template's end of turn too; the rollout engine itself ends it at the tokens of the generation config.
    """

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **fields: Any) -> Any:
        """Draw one completion."""
        if TEMPERATURE in fields:
            sampling_params = {**sampling_params, "temperature": float(fields[TEMPERATURE])}
        turn = end_of_turn(self.tokenizer)
        if turn is not None:
            sampling_params = {**sampling_params, "stop_token_ids": [turn]}
        return await super().run(sampling_params, priority, **fields)
