"""Which sampler the settings choose, and when it is given weights."""

import pytest
import torch

from aepo.config import make_config
from aepo.errors import InvalidValue
from aepo.sampling.draw import WHOLE, Cuts
from aepo.sampling.hf import HFSampler
from aepo.sampling.vllm import VLLMSampler
from aepo.training import runner
from aepo.training.checkpoint import TrainState
from aepo.training.step import train_step
from tests.training.test_step import make_run, small


def test_hf_is_the_default_and_vllm_a_setting(quick_model):
    run = make_run(small(quick_model))
    assert isinstance(run.sampler, HFSampler)
    vllm = runner.make_sampler(run.policy, small(quick_model, "aepo", 5, "sampling.engine=vllm"))
    assert isinstance(vllm, VLLMSampler) and vllm.eos_token_ids == run.policy.eos_token_ids


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["sampling.server='http://localhost:1'"], "sampling.server: got .* together with sampling.engine=vllm"),
        (["sampling.server='http://localhost:1'", "sampling.engine=vllm"], "sampling.scratch"),
        (["sampling.decode=static", "sampling.engine=vllm"], "sampling.decode: got 'static'; must be auto"),
        (["sampling.max_rows=8", "sampling.engine=vllm"], "sampling.max_rows: got 8; must be none"),
        (["sampling.engine=sglang"], "sampling.engine: got 'sglang'; must be one of hf, vllm"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(InvalidValue, match=words):
        make_config(settings=settings)


def test_a_control_that_heats_single_tokens_is_refused_with_vllm():
    with pytest.raises(InvalidValue, match=r"sampling\.engine: got 'vllm'; must be hf: the control hapo"):
        make_config(method="hapo", settings=["sampling.engine=vllm"])


def test_the_sampler_gets_the_weights_of_every_step_before_it_samples(quick_model, monkeypatch):
    given = []
    total = lambda policy: sum(p.detach().double().sum().item() for p in policy.model.parameters())
    monkeypatch.setattr(HFSampler, "refresh", lambda self, policy: given.append(total(policy)))
    run = make_run(small(quick_model, "entropy-reg", 5))
    state, before = TrainState(), total(run.policy)
    state, _, _ = train_step(run, state)
    between = total(run.policy)
    train_step(run, state)
    assert given == [before, between] and before != between


def test_another_top_p_cut_is_another_sampler_on_the_same_model(quick_model):
    run = make_run(small(quick_model, "grpo", 5, "sampling.top_p=0.5"))
    whole = run.sampler.with_cuts(WHOLE)
    assert (run.sampler.cuts.top_p, whole.cuts) == (0.5, Cuts()) and whole.model is run.sampler.model
    assert torch.is_grad_enabled()
