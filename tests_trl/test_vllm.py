"""TRL's vLLM path with a sampler that stands in for vLLM, which needs a GPU here: its log-probabilities are those of
softmax(logits / temperature), as vLLM's are."""

from __future__ import annotations

import math

import pytest
import torch

from aepo.engines import stages
from aepo.errors import InvalidValue

from .test_round import Watched
from .tiny import series, trainer


class StandIn:
    """`temperature` is read at each call, as TRL's `vllm_generation` does."""

    def __init__(self, policy, ends, off=0.0):
        self.policy, self.ends, self.temperature, self.calls = policy, ends, 1.0, []
        self.off = off  # what a tempered log-probability is wrong by, nats

    def sync_weights(self):
        pass

    @torch.no_grad()
    def generate(self, prompts, images=None, num_generations=1, profiler=None):
        assert len(prompts) % num_generations == 0
        self.calls.append(self.temperature)
        tokens, logprobs = zip(*(self.one(list(prompt)) for prompt in prompts), strict=True)
        return None, list(tokens), list(logprobs), None

    def one(self, prompt):
        tokens, logprobs = [], []
        while len(tokens) < 6 and not (tokens and tokens[-1] == self.ends):
            logits = self.policy(input_ids=torch.tensor([prompt + tokens])).logits[0, -1]
            scores = (logits / self.temperature).log_softmax(-1)
            tokens.append(int(torch.multinomial(scores.exp(), 1)))
            logprobs.append([float(scores[tokens[-1]]) + self.off * (self.temperature != 1)])
        return tokens, logprobs


def trained(folder, mode, off=0.0, steps=4, **settings):
    one_update = {"per_device_train_batch_size": 32, "max_steps": steps, "num_generations": 8}
    settings = {"vllm_importance_sampling_mode": mode, **one_update, **settings}
    made = trainer(folder, cls=Watched, target="3.0", learning_rate=1e-2, **settings)
    made.use_vllm, made._last_loaded_step = True, -1
    made.vllm_generation = StandIn(made.model, made.processing_class.eos_token_id, off)
    made.train()
    return made


def extra_ratios(out):
    """The ratios of the positives' tokens (of the rows, in the sequence modes)."""
    ratio, mask = out["importance_sampling_ratio"], out["completion_mask"].bool()
    mask = mask if ratio.shape[1] > 1 else mask[:, :1]
    extra = out["advantages"].max(1).values == 2.0
    return ratio[extra][mask[extra]], ratio[~extra][mask[~extra]], out["completion_mask"][extra].sum(1)


@pytest.fixture(params=["token_truncate", "sequence_mask"])
def done(tmp_path, request):
    return trained(tmp_path, request.param)


def test_the_temperature_is_vllms_for_the_extra_call_alone(done):
    assert done.vllm_generation.calls == [1.0] + 3 * [1.0, 1.5] and done.vllm_generation.temperature == 1.0


def test_tempered_rows_are_trained_on_in_full(done):
    for out, drawn, used in zip(done.out[1:], done.drawn[1:], series(done, "aepo/extra_used")[1:], strict=True):
        extra = out["advantages"].max(1).values == 2.0
        assert extra.sum() == used > 0
        for kept in extra_ratios(out)[:2]:
            torch.testing.assert_close(kept, torch.ones_like(kept), atol=1e-4, rtol=0)
        assert torch.equal(out["sampling_per_token_logps"][extra], out["old_per_token_logps"][extra])
        # What TRL would have weighed them by.
        assert (drawn[1][1].rows["importance_sampling_ratio"] - 1).abs().max() > 0.1


def test_the_sensor_is_exact_there_too(done):
    assert series(done, "aepo/entropy") == pytest.approx(done.exact, abs=1e-5)


@pytest.mark.parametrize("method", ["aepo", "aepo+entropy-reg"])
def test_a_sampler_that_is_wrong_at_t_is_corrected_at_t(method, tmp_path):
    """Tempered log-probabilities are too high by log 1.25: the factor of a token is 1 / 1.25. The second method has
    this package's loss.
    """
    off = math.log(1.25)
    done = trained(tmp_path / "tokens", "token_truncate", off, 2, method=method)
    extra, ordinary, _ = extra_ratios(done.out[1])
    assert len(extra) > 0
    torch.testing.assert_close(extra, torch.full_like(extra, 0.8), atol=1e-4, rtol=0)
    torch.testing.assert_close(ordinary, torch.ones_like(ordinary), atol=1e-4, rtol=0)
    low = {"vllm_importance_sampling_clip_min": 0.9}
    masked = trained(tmp_path / "masked", "token_mask", off, 2, method=method, **low)
    extra, ordinary, _ = extra_ratios(masked.out[1])
    assert len(extra) > 0 and not extra.any()
    torch.testing.assert_close(ordinary, torch.ones_like(ordinary), atol=1e-4, rtol=0)
    whole = trained(tmp_path / "rows", "sequence_truncate", off, 2, method=method)
    extra, _, lengths = extra_ratios(whole.out[1])
    torch.testing.assert_close(extra, 0.8 ** lengths.float(), atol=1e-3, rtol=0)


def test_without_a_pass_at_t_tempered_rows_have_ratio_1_and_it_is_said(tmp_path, monkeypatch):
    def refuse(self):
        raise InvalidValue("fsdp", "on", "off")

    monkeypatch.setattr(Watched, "_check_own_pass", refuse)
    with pytest.warns(UserWarning, match="tempered rows have the importance ratio 1"):
        done = trained(tmp_path, "token_truncate", math.log(1.25), 2)
    extra, _, _ = extra_ratios(done.out[1])
    assert len(extra) > 0 and torch.equal(extra, torch.ones_like(extra))


def test_this_packages_loss_gets_the_ratio_as_its_correction(tmp_path, monkeypatch):
    """The ratio is no part of the token's weight, whose 0 would mean padding and take the bonus away."""
    seen, original = [], stages.loss

    def spy(algorithm, part, *more):
        seen.append(part)
        return original(algorithm, part, *more)

    monkeypatch.setattr(stages, "loss", spy)
    done = trained(tmp_path, "token_truncate", math.log(1.25), 2, method="aepo+entropy-reg")
    part, out = seen[-1], done.out[-1]
    assert part.correction.shape == part.batch.mask.shape
    assert sorted(part.correction[part.batch.mask.bool()].tolist())[0] == pytest.approx(0.8, abs=1e-4)
    assert out["importance_sampling_ratio"].min() == pytest.approx(0.8, abs=1e-4)
