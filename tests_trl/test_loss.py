"""TRL's loss and its gradient are the core's, on the very batch."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from .parity import ParityTrainer
from .tiny import lora, model, series, trainer

# (method, settings): the first group keeps TRL's loss, the second has this package's.
TRL_LOSS = {
    "grpo": {},
    "aepo": {},
    "aepo-signed": {},
    "aepo-reweighted": {},
    "dr-grpo": {},
    "rloo": {},
    "clip-higher": {},
    "entropy-adv": {},
    "overlong": {"control.filter_truncated": True, "control.buffer": 3},
    "aepo+clip-higher": {},
    "w-reinforce": {},
    "nsr": {},
    "entrocraft": {"control.low": "8", "control.high": "9"},
    "gspo": {},
    "luspo": {},
    "cispo": {},
    "sapo": {},
    "vespo": {},
    "aepo+cispo": {},
    "aepo+sapo": {},
    "entropy-adv+vespo": {},
    "maxrl": {},
}
OWN_LOSS = {
    "aepo-reference": {},
    "entropy-reg": {"control.coefficient": 0.1},
    "clip-cov": {},
    "kl-cov": {},
    "moving-bound": {},
    "aent": {},
    "siren": {},
    "trajectory-entropy": {},
    "ce-gppo": {},
    "erc": {},
    "lp-reg": {"control.share": 0.3},
    "repo": {},
    "gmpo": {},
    "dppo": {"surrogate.high": 0.02},
    "aepo+gspo": {},
    "aepo+luspo": {},
    "entropy-adv+gspo": {},
    "entropy-reg+cispo": {"control.coefficient": 0.1},
}


def run(tmp_path, method, settings, **changes):
    target = {"target": "0.5"} if method.startswith("aepo") and method != "aepo-reference" else {"target": None}
    one_round = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "num_iterations": 2}
    done = trainer(
        tmp_path,
        policy=model(kind="qwen3"),
        cls=ParityTrainer,
        method=method,
        settings=settings,
        max_grad_norm=0.0,
        learning_rate=2e-2,
        max_steps=6,
        **{**target, **one_round, **changes},
    )
    done.train()
    return done


@pytest.mark.parametrize("method", [*TRL_LOSS, *OWN_LOSS])
def test_loss_and_gradient_are_the_cores(tmp_path, method):
    done = run(tmp_path, method, {**TRL_LOSS, **OWN_LOSS}[method])
    assert done._own_loss == (method in OWN_LOSS)
    assert any(series(done, "aepo/extra_used")) == (method.startswith("aepo") and method != "aepo-reweighted")
    check(done)


@pytest.mark.parametrize("method", ["aepo", "aepo-reweighted", "entropy-reg"])
def test_with_an_adapter_and_activations_computed_again(tmp_path, method):
    settings = {**TRL_LOSS, **OWN_LOSS}[method]
    check(run(tmp_path, method, settings, peft_config=lora(4), gradient_checkpointing=True))


def check(done):
    assert len(done.updates) == 6 and all(len(update.losses) == 4 for update in done.updates)
    for update in done.updates:
        assert sum(update.losses) == pytest.approx(update.core, abs=1e-5)
        assert update.gradient.norm() > 1e-3
        torch.testing.assert_close(update.gradient, update.core_gradient, atol=1e-5, rtol=1e-4)


def test_the_second_iteration_clips(tmp_path):
    """Else the tests above would say nothing about the ratio."""
    done = run(tmp_path, "aepo", {})
    clipped = [row["clip_ratio/region_mean"] for row in done.state.log_history if "clip_ratio/region_mean" in row]
    assert max(clipped[1::2]) > 0.05


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo", "luspo"])
def test_own_loss_weighs_tokens_as_trl_does(tmp_path, loss_type):
    """A coefficient of zero leaves the loss of GRPO, with TRL's weights."""
    same = {"loss_type": loss_type, "target": None, "max_steps": 4, "per_device_train_batch_size": 32}
    # Not Adam, which makes a step of the sign of a gradient that is zero but for rounding.
    spread = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "optim": "sgd", "learning_rate": 0.3}
    if loss_type == "dapo" and Version(version("trl")) < Version("1.10"):  # TRL took the round's tokens for an update's
        spread |= {"steps_per_generation": 2}
    own = trainer(tmp_path, method="entropy-reg", settings={"control.coefficient": "0.0"}, **same, **spread)
    own.train()
    trl = trainer(tmp_path, method="grpo", **same, **spread)
    trl.train()
    assert own._own_loss and not trl._own_loss
    for a, b, start in zip(own.model.parameters(), trl.model.parameters(), model().parameters(), strict=True):
        assert not torch.allclose(a, start, atol=1e-4)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
