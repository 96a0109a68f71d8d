"""A stand-in of Unsloth's scoring method, which gives no entropies and log-probabilities without gradient.

Unsloth itself needs a GPU and was not run.
"""

from __future__ import annotations

import pytest
import torch
from trl import GRPOTrainer

from aepo.errors import InvalidValue
from aepo.integrations.trl import rows as table

from .job import Job, run
from .test_hold import CLOSE, STEPS, last_third
from .tiny import model, series, trainer

# The statistics of the two passes round differently; Adam makes a step of the sign of a gradient near zero.
SETTINGS = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.3}


@pytest.fixture
def unsloth(monkeypatch):
    """Patch TRL as Unsloth does. Its own loss takes the place of TRL's and does not call the method: where TRL's loss
    stays, calls with gradient go to TRL.
    """
    original = GRPOTrainer._get_per_token_logps_and_entropies
    calls = []

    def patched(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_efficient=False,
        *given,
        **named,
    ):
        if compute_efficient:
            return None, None
        scores = original(
            self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, *given, **named
        )
        if torch.is_grad_enabled() and not self._own_loss:
            return scores
        calls.append(compute_entropy)
        return scores[0].detach(), None, *scores[2:]

    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", patched)
    return calls


def trained(tmp_path, method, **changes):
    target = {"target": "1.5"} if method == "aepo" else {"target": None}
    done = trainer(tmp_path, method=method, **{**SETTINGS, **target, **changes})
    done.train()
    return done


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("method", ["aepo", "entropy-adv", "moving-bound", "kl-cov", "entropy-reg"])
def test_without_entropies_the_packages_own_are_taken(tmp_path, method, iterations, request):
    """aepo and entropy-adv have TRL's loss, the others the package's."""
    plain = trained(tmp_path, method, num_iterations=iterations)
    calls = request.getfixturevalue("unsloth")
    patched = trained(tmp_path, method, num_iterations=iterations)
    assert calls or method == "entropy-reg"
    for name in ("aepo/entropy", "aepo/sampled_entropy", "aepo/command", "loss"):
        assert series(patched, name) == pytest.approx(series(plain, name), abs=2e-5)
    for a, b, start in zip(patched.model.parameters(), plain.model.parameters(), model().parameters(), strict=True):
        assert not torch.equal(a, start)
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_scoring_method_is_asked_once(tmp_path, unsloth):
    """Every further call would be a forward pass for nothing."""
    trained(tmp_path, "moving-bound")
    assert len(unsloth) == 1


def test_the_target_is_held(tmp_path, unsloth):
    answer = run(Job(str(tmp_path), {**STEPS, "target": "1.5"}))
    assert last_third(answer) == pytest.approx(1.5, abs=CLOSE) and unsloth


def test_a_model_that_the_own_pass_cannot_read_is_refused(tmp_path, unsloth):
    capped = model()
    plain = capped.forward
    capped.forward = lambda *given, **named: _capped(plain(*given, **named))
    with pytest.raises(InvalidValue, match="^model: got .* soft-cap"):
        trained(tmp_path, "aepo", policy=capped)


def _capped(output):
    if output.logits is not None:
        output.logits = (output.logits / 2).tanh()
    return output


def test_rows_in_unsloths_layout_are_refused():
    with pytest.raises(InvalidValue, match="import aepo.integrations.trl before unsloth"):
        table.check({"prompt_ids": None, "max_left_pad": None})
