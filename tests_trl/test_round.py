"""One round of generation: who is measured, who is replaced by whom, and what is counted."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from aepo.entropy.statistics import logits_statistics
from aepo.integrations.trl import EntropyControlTrainer
from aepo.types import Metric

from .tiny import even_start, series, trainer


class Watched(EntropyControlTrainer):
    """Keeps what each round was made of and what came out."""

    def __init__(self, *given, **named):
        self.drawn, self.out, self.exact, self.surprise = [], [], [], []
        super().__init__(*given, **named)

    def _generate_and_score_completions(self, inputs):
        self.drawn.append([])
        self.surprise.append({})
        out = super()._generate_and_score_completions(inputs)
        self.out.append({name: value.clone() for name, value in out.items()})
        return out

    def _draw(self, inputs, groups, temperature=1.0):
        drawn = super()._draw(inputs, groups, temperature)
        self.drawn[-1].append((temperature, drawn))
        entropy, surprise = from_logits(self.model, drawn.rows)
        self.surprise[-1][temperature] = surprise
        if temperature == 1.0:
            self.exact.append(entropy)
        return drawn


def from_logits(policy, rows):
    """Exact entropy and mean -log pi of the completions, from all logits, at the weights of this moment."""
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)
    attention = torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)
    width = rows["completion_ids"].shape[1]
    with torch.no_grad():
        logits = policy(input_ids=ids, attention_mask=attention).logits[:, -width - 1 : -1]
    stats = logits_statistics(logits, rows["completion_ids"])
    return tuple(Metric.of(values, rows["completion_mask"]).mean for values in (stats.entropy, -stats.logprobs))


def texts(rows):
    """(prompt, completion) of each row, without padding."""
    return [
        tuple(
            tuple(ids[mask.bool()].tolist())
            for ids, mask in [
                (rows["prompt_ids"][row], rows["prompt_mask"][row]),
                (rows["completion_ids"][row], rows["completion_mask"][row]),
            ]
        )
        for row in range(len(rows["prompt_ids"]))
    ]


def watched(tmp_path, **changes):
    done = trainer(tmp_path, cls=Watched, **{"target": "3.0", "learning_rate": 1e-2, **changes})
    done.train()
    return done


@pytest.mark.parametrize(
    "spread",
    [
        {},
        {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 16, "steps_per_generation": 4, "max_steps": 12},
        {"num_iterations": 2, "max_steps": 8},
        {"method": "aepo-reweighted"},
    ],
    ids=["plain", "accumulated", "four updates a round", "two iterations", "passes of its own"],
)
def test_the_sensor_is_the_exact_entropy_of_the_ordinary_rows(tmp_path, spread):
    """Under the policy that sampled them, and with rows that are replaced afterwards."""
    done = watched(tmp_path, **spread)
    assert len(done.exact) >= 3 and len(done.exact) == len(done.drawn)
    assert series(done, "aepo/entropy") == pytest.approx(done.exact, abs=1e-5)
    assert len({round(value, 3) for value in done.exact}) > 1


def test_positives_drawn_hotter_take_the_places_of_ordinary_rows(tmp_path):
    done = watched(tmp_path, settings={"control.law": "switch", "control.approach": 0})  # commands at the limits
    for number, (drawn, out) in enumerate(zip(done.drawn, done.out, strict=True)):
        ordinary = drawn[0][1]
        before, after = texts(ordinary.rows), texts(out)
        if number == 0:  # measures and adds nothing
            assert len(drawn) == 1 and before == after
            continue
        (temperature, extra) = drawn[1]
        assert temperature == 1.5
        rewards = [rollout.reward for rollout in extra.rollouts]
        right = [text for text, reward in zip(texts(extra.rows), rewards, strict=True) if reward == 1.0]
        replaced = [row for row in range(len(after)) if out["advantages"][row].max() == 2.0]
        assert len(replaced) == min(16, len(right)) == series(done, "aepo/extra_used")[number] > 4
        assert not Counter(after[row] for row in replaced) - Counter(right)
        kept = [row for row in range(len(after)) if row not in replaced]
        assert [after[row] for row in kept] == [before[row] for row in kept]
        assert {prompt for prompt, _ in texts(extra.rows)} <= {prompt for prompt, _ in before}


def test_ordinary_rows_keep_the_advantage_in_their_group(tmp_path):
    done = watched(tmp_path, settings={"control.reach": 1.0})  # so that a positive's advantage is the weight, 2
    out, ordinary = done.out[-1], done.drawn[-1][0][1]
    rewards = torch.tensor([rollout.reward for rollout in ordinary.rollouts]).view(-1, 8)
    expected = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)).flatten()
    kept = out["advantages"].max(1).values != 2.0
    per_row = out["advantages"].sum(1) / out["completion_mask"].sum(1)
    torch.testing.assert_close(per_row[kept], expected[kept], atol=1e-3, rtol=1e-3)
    assert torch.all((out["advantages"] != 0) <= (out["completion_mask"] > 0))


@pytest.mark.parametrize("target, temperature", [("3.0", 1.5), ("0.1", 0.67)])
def test_hotter_under_the_target_and_colder_above(tmp_path, target, temperature):
    done = watched(tmp_path, target=target, max_steps=3)
    assert series(done, "aepo/extra_temperature") == [temperature] * 2
    assert done.generation_config.temperature == done.generation_kwargs["temperature"] == 1.0


def test_extra_rows_really_come_from_a_hotter_policy(tmp_path):
    """Their tokens are less likely at T = 1 than the policy's own, whose mean -log pi is its entropy."""
    done = watched(tmp_path, settings={"control.distribution.high": 4.0, "control.draw": "all"}, max_steps=4)
    for entropy, surprise in zip(done.exact[1:], done.surprise[1:], strict=True):
        assert surprise[1.0] == pytest.approx(entropy, abs=0.25)
        assert surprise[4.0] > entropy + 0.4


@pytest.mark.parametrize("padded", [None, 8])
def test_tokens_are_counted_after_the_merge(tmp_path, padded):
    done = watched(tmp_path, pad_to_multiple_of=padded)
    for out in done.out:
        assert out["num_items_in_batch"] == out["completion_mask"].sum()
        assert len({len(value) for name, value in out.items() if value.dim()}) == 1
    before = [drawn[0][1].rows["completion_mask"].sum() for drawn in done.drawn]
    assert before != [out["num_items_in_batch"] for out in done.out]


def test_what_trl_logs_is_of_the_ordinary_rows(tmp_path):
    """The tempered ones are drawn by the same code, which must not log them."""
    done = watched(tmp_path)
    rewards = [sum(r.reward for r in drawn[0][1].rollouts) / 64 for drawn in done.drawn]
    assert series(done, "reward") == pytest.approx(rewards)


def test_truncated_rows_are_measured_and_not_trained_on(tmp_path):
    done = watched(tmp_path, method="overlong", target=None, settings={"control.filter_truncated": True})
    out, ordinary = done.out[-1], done.drawn[-1][0][1]
    truncated = torch.tensor([rollout.completion.truncated for rollout in ordinary.rollouts])
    assert 0 < truncated.sum() < 64
    assert torch.equal(out["completion_mask"].sum(1) == 0, truncated)
    assert series(done, "aepo/entropy") == pytest.approx(done.exact, abs=1e-5)


def test_completions_without_a_reward_are_left_out(tmp_path):
    def sometimes(completions, **_):
        rewards = zip(completions, even_start(completions), strict=True)
        return [None if "w3" in text else reward for text, reward in rewards]

    done = watched(tmp_path, reward_funcs=sometimes, max_steps=2)
    nothing = torch.tensor([rollout.reward != rollout.reward for rollout in done.drawn[0][0][1].rollouts])
    assert 0 < nothing.sum() < 64
    assert torch.equal(done.out[0]["completion_mask"].sum(1) == 0, nothing)
    assert done.out[0]["advantages"].isfinite().all()


def test_several_rewards_are_weighed(tmp_path):
    def long(completions, **_):
        return [len(text.split()) / 10 for text in completions]

    done = watched(tmp_path, reward_funcs=[even_start, long], reward_weights=[1.0, 0.5], max_steps=1)
    rollouts = done.drawn[0][0][1].rollouts
    answers = [done.processing_class.decode(r.completion.tokens, skip_special_tokens=True) for r in rollouts]
    expected = [a + 0.5 * b for a, b in zip(even_start(answers), long(answers), strict=True)]
    assert [r.reward for r in rollouts] == pytest.approx(expected)


def test_evaluation_is_trls_own_and_moves_no_state(tmp_path):
    done = trainer(tmp_path, cls=Watched, eval_strategy="no", per_device_eval_batch_size=16, max_steps=1)
    done.train()
    state, rounds = done.entropy_state, done.rounds
    assert "eval_reward" in done.evaluate(done.train_dataset.select(range(4)))
    assert (done.entropy_state, done.rounds) == (state, rounds)


def test_lengths_that_differ_between_ordinary_and_tempered_rows(tmp_path):
    """Prompts of other widths and completions of other widths end up in one tensor."""
    done = watched(tmp_path, max_completion_length=56, max_steps=8, per_device_train_batch_size=8)
    widths = [[d.rows["completion_ids"].shape[1] for _, d in drawn] for drawn in done.drawn if len(drawn) > 1]
    assert any(len(set(pair)) > 1 for pair in widths)
    for out in done.out:
        assert out["advantages"].shape == out["completion_ids"].shape == out["completion_mask"].shape
