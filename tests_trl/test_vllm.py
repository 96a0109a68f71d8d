"""TRL's vLLM path with a sampler that stands in for vLLM, which needs a GPU here: its log-probabilities are those of
softmax(logits / temperature), as vLLM's are."""

from __future__ import annotations

import pytest
import torch

from .test_round import Watched
from .tiny import series, trainer


class StandIn:
    """`temperature` is read at each call, as TRL's `vllm_generation` does."""

    def __init__(self, policy, ends):
        self.policy, self.ends, self.temperature, self.calls = policy, ends, 1.0, []

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
            logprobs.append([float(scores[tokens[-1]])])
        return tokens, logprobs


@pytest.fixture(params=["token_truncate", "sequence_mask"])
def done(tmp_path, request):
    one_update = {"per_device_train_batch_size": 32, "max_steps": 4, "num_generations": 8}
    mode = {"vllm_importance_sampling_mode": request.param}
    made = trainer(tmp_path, cls=Watched, target="3.0", learning_rate=1e-2, **one_update, **mode)
    made.use_vllm, made._last_loaded_step = True, -1
    made.vllm_generation = StandIn(made.model, made.processing_class.eos_token_id)
    made.train()
    return made


def test_the_temperature_is_vllms_for_the_extra_call_alone(done):
    assert done.vllm_generation.calls == [1.0] + 3 * [1.0, 1.5] and done.vllm_generation.temperature == 1.0


def test_tempered_rows_are_trained_on_in_full(done):
    for out, drawn, used in zip(done.out[1:], done.drawn[1:], series(done, "aepo/extra_used")[1:], strict=True):
        ratio, mask = out["importance_sampling_ratio"], out["completion_mask"].bool()
        mask = mask if ratio.shape[1] > 1 else mask[:, :1]
        extra = out["advantages"].max(1).values == 2.0
        assert extra.sum() == used > 0
        assert torch.all(ratio[extra][mask[extra]] == 1.0)
        kept = ratio[~extra][mask[~extra]]
        torch.testing.assert_close(kept, torch.ones_like(kept), atol=1e-4, rtol=0)
        assert torch.equal(out["sampling_per_token_logps"][extra], out["old_per_token_logps"][extra])
        # What TRL would have weighed them by.
        assert (drawn[1][1].rows["importance_sampling_ratio"] - 1).abs().max() > 0.1


def test_the_sensor_is_exact_there_too(done):
    assert series(done, "aepo/entropy") == pytest.approx(done.exact, abs=1e-5)
