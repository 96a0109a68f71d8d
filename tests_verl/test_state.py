"""The control's state in a checkpoint's folder."""

from __future__ import annotations

import pytest

from aepo.errors import InvalidValue
from aepo.integrations.verl import state
from aepo.integrations.verl.settings import Chosen
from aepo.methods import preset


def chosen(method: str, new_state: bool = False) -> Chosen:
    return Chosen(method, preset(method), seed=0, kl_coefficient=0.0, new_state=new_state)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    kept = {"command": -0.1 - 1e-17, "integral": 1 / 3, "pass_rate": {"1": 0.7}, "first_entropy": None}
    state.save(tmp_path / "global_step_3", chosen("aepo"), 3, kept)
    assert state.load(tmp_path / "global_step_3", chosen("aepo-v6")) == kept


def test_no_state_and_another_controls_state_are_refused(tmp_path):
    with pytest.raises(InvalidValue, match=r"a folder with aepo\.json"):
        state.load(tmp_path, chosen("aepo"))
    state.save(tmp_path, chosen("aepo"), 3, {"command": 1.0})
    with pytest.raises(InvalidValue, match="one with the control aepo"):
        state.load(tmp_path, chosen("entropic"))
    state.save(tmp_path, chosen("aepo+dynamic-sampling"), 3, {"first": {}, "second": {}})
    with pytest.raises(InvalidValue, match=r"one with the control aepo\+dynamic-sampling"):
        state.load(tmp_path, chosen("aepo+overlong"))
    fresh = chosen("entropic", new_state=True)
    assert state.load(tmp_path, fresh) == fresh.algorithm.control.initial_state()
