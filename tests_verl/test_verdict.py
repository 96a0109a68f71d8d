"""The smoke test's checks, on evidence of a small loop in this process: right as it is, wrong with each fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aepo.control.base import Scored, Step
from aepo.convert import make_algorithm
from aepo.engines import stages
from aepo.entropy.statistics import logits_statistics
from aepo.integrations.verl import evidence as proof
from aepo.integrations.verl import rows as table
from aepo.integrations.verl.evidence import Evidence, EvidenceRow
from aepo.integrations.verl.smoke import DEFAULTS, STEPS, STOP, policy
from aepo.integrations.verl.verdict import BF16, FLOAT32, Finding, missing, verdict
from aepo.types import BatchStatistics, Metric
from tests_verl.support import toy

PROMPTS, GROUP, LENGTH, END = 8, 8, 12, toy.END_ID
TARGET = next(word.split("=", 1)[1] for word in DEFAULTS if word.startswith("aepo.target="))
ALGORITHM = make_algorithm("aepo", {"control.target": TARGET})


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharp")
    toy.make_model(folder, seed=0, sharpness=8.0)
    return policy(str(folder))


def draw(logits, number: int, prompt: tuple[int, ...], extra, draws) -> table.RolloutRow:
    """One completion; extra: None, or the planned group with its temperature. A prompt's first token numbers it."""
    source = prompt[0] % PROMPTS
    heat, tokens, logprobs = extra.temperature if extra else 1.0, [], []
    while len(tokens) < LENGTH and END not in tokens:
        chances = torch.log_softmax(logits(completed(prompt, (*tokens, 0)))[-1] / heat, -1)
        tokens.append(int(torch.multinomial(chances.exp(), 1, generator=draws)))
        logprobs.append(chances[tokens[-1]].item())
    group = PROMPTS + source if extra else source
    reward = float(tokens[0] % 2 == 0)
    mask = (1,) * len(tokens)
    return table.RolloutRow(f"{number}", group, source, 0, prompt, tuple(tokens), mask, tuple(logprobs), reward, heat)


def one_step(logits, step: Step, state) -> Evidence:
    """Everything that verl does in a step before its update."""
    draws, first = torch.Generator().manual_seed(step.number), step.number * PROMPTS
    prompts = [(first + place, 65, 58) for place in range(PROMPTS)]
    planned = [extra for extra in ALGORITHM.control.plan(state, step) for _ in range(extra.count)]
    wanted = [*((place, None) for place in range(PROMPTS) for _ in range(GROUP)), *((e.prompt, e) for e in planned)]
    drawn = [draw(logits, number, prompts[place], extra, draws) for number, (place, extra) in enumerate(wanted)]
    made = table.rollouts(drawn, frozenset({END}), LENGTH)
    keys = {id(rollout.completion): row.key for rollout, row in zip(made, drawn, strict=True)}
    groups = frozenset(row.group for row in drawn if row.group != row.source)
    rollouts = stages.rewarded(made)
    ordinary, extra = stages.with_advantages(ALGORITHM, rollouts, groups, state, step)
    samples = ALGORITHM.control.mix(ordinary, extra, state, step)
    completions = [sample.rollout.completion for sample in samples]
    batch = table.to_batch(samples, [(1,) * len(completion.tokens) for completion in completions], 0)
    stats = [statistics(logits, completed(c.prompt.tokens, c.tokens)) for c in completions]
    old = BatchStatistics(table.pad([found.logprobs for found in stats]), table.pad([found.entropy for found in stats]))
    scored = Scored(batch, old, step)
    measured = stages.measure(ordinary, extra, scored, Metric(1.0, 1))
    after = ALGORITHM.control.update(state, measured)
    logged = {"entropy": measured.entropy.mean, "approximate_kl": 0.0}
    rows = proof.rows(drawn, [keys[id(completion)] for completion in completions], scored, sampler=True)
    return Evidence(step, state, after, logged, rows)


def statistics(logits, row: EvidenceRow, **temperatures):
    return logits_statistics(logits(row), torch.tensor(row.tokens), **temperatures)


def completed(prompt, tokens) -> EvidenceRow:
    return EvidenceRow(0, 0, 1.0, tuple(prompt), tuple(tokens), (1,) * len(tokens), None, None)


@pytest.fixture(scope="module")
def whole(logits) -> list[Evidence]:
    """Four steps, the second and the fourth with cold rows and the third with hot ones."""
    state, found = ALGORITHM.control.initial_state(), []
    for number in range(STEPS):
        step = Step(number, STEPS, PROMPTS, GROUP, LENGTH, seed=0)
        found.append(one_step(logits, step, state))
        state = found[-1].after
    return found


def judged(whole, logits, saved=None, tolerance=FLOAT32) -> list[Finding]:
    saved = saved or whole[STOP - 1].after
    return verdict(whole, logits, ALGORITHM, saved=saved, resumed=STOP, tolerance=tolerance)


def wrong(findings: list[Finding]) -> set[str]:
    return {found.name for found in findings if found.status == "WRONG"}


def with_rows(evidence: Evidence, change) -> Evidence:
    return replace(evidence, rows=[change(row) for row in evidence.rows])


def each(whole, change) -> list[Evidence]:
    """The evidence with `change` made to every row."""
    return [with_rows(step, change) for step in whole]


@pytest.mark.parametrize("tolerance", [FLOAT32, BF16], ids=["float32", "bf16"])
def test_a_run_as_it_should_be_is_right(whole, logits, tolerance):
    findings = judged(whole, logits, tolerance=tolerance)
    assert not wrong(findings) and missing(findings) == [], "\n".join(map(str, findings))
    heats = [{row.temperature for row in step.rows if row.extra} for step in whole]
    assert heats == [set(), {0.67}, {1.5}, {0.67}]


def test_evidence_survives_its_files(whole, tmp_path):
    for step in reversed(whole):
        proof.write(tmp_path / "evidence", step)
    assert proof.read(tmp_path / "evidence") == whole


@pytest.mark.parametrize("tolerance", [FLOAT32, BF16], ids=["float32", "bf16"])
def test_an_entropy_that_is_off_by_a_factor_is_wrong(whole, logits, tolerance):
    off = [replace(step, logged={**step.logged, "entropy": 1.05 * step.logged["entropy"]}) for step in whole]
    assert wrong(judged(off, logits, tolerance=tolerance)) == {"sensor"}


def test_rows_that_were_drawn_at_another_temperature_are_wrong_by_their_tokens_alone(whole, logits):
    """The engine says T and draws at 1: the tokens of ordinary rows stand under the extra rows."""
    plain = [row for row in whole[2].rows if not row.extra]
    chosen = {id(row): plain[place % len(plain)] for place, row in enumerate(whole[2].rows) if row.extra}

    def swapped(row):
        other = chosen.get(id(row))
        if other is None:
            return row
        own = {"group": row.group, "source": row.source, "temperature": row.temperature}
        return replace(other, **own, sampler=None)

    off = [*whole[:2], with_rows(whole[2], swapped), whole[3]]
    assert wrong(judged(off, logits, tolerance=BF16)) == {"tempered"}


def test_ordinary_rows_that_were_drawn_hot_are_wrong(whole, logits):
    hot = [row for row in whole[2].rows if row.extra]
    chosen = {id(row): hot[place % len(hot)] for place, row in enumerate(whole[2].rows) if not row.extra}

    def swapped(row):
        other = chosen.get(id(row), row)
        return replace(other, group=row.group, source=row.source, temperature=row.temperature, scores=other.scores)

    assert "ordinary" in wrong(judged([*whole[:2], with_rows(whole[2], swapped), whole[3]], logits, tolerance=BF16))


def test_log_probabilities_at_the_wrong_temperature_are_wrong(whole, logits):
    """The trap of samplers: log pi where log pi^T is expected. And of trainers: the other way round."""

    def at(row, temperature):
        found = statistics(logits, row, temperatures=[temperature])
        return tuple(found.tempered[0].tolist())

    sampler = each(whole, lambda row: replace(row, sampler=at(row, 1.0)))
    assert wrong(judged(sampler, logits, tolerance=BF16)) == {"tempered"}
    scores = each(whole, lambda row: replace(row, scores=row.scores and at(row, row.temperature)))
    assert wrong(judged(scores, logits, tolerance=BF16)) == {"scores"}


def test_an_update_at_another_temperature_is_wrong(whole, logits):
    off = [replace(step, logged={**step.logged, "approximate_kl": 0.03}) for step in whole]
    assert wrong(judged(off, logits, tolerance=BF16)) == {"scores"}


def test_a_sampler_without_log_probabilities_is_judged_by_its_tokens(whole, logits):
    silent = each(whole, lambda row: replace(row, sampler=None))
    findings = judged(silent, logits)
    assert not wrong(findings) and missing(findings) == []


def test_too_few_tokens_are_no_verdict(whole, logits):
    few = [replace(step, rows=[*step.rows[:8], *(row for row in step.rows if row.extra)][:9]) for step in whole]
    findings = judged(each(few, lambda row: replace(row, sampler=None)), logits, tolerance=BF16)
    assert "tempered" in missing(findings)


def test_a_state_that_was_lost_is_wrong(whole, logits):
    fresh = ALGORITHM.control.initial_state()
    lost = [*whole[:2], replace(whole[2], before=fresh), whole[3]]
    assert wrong(judged(lost, logits)) == {"state", "plan"}
    assert wrong(judged(whole, logits, saved=fresh)) == {"state"}
    forgot = {**whole[2].before, "law": {}}
    assert "state" in wrong(judged([*whole[:2], replace(whole[2], before=forgot), whole[3]], logits))


def test_data_that_began_anew_and_steps_that_did_are_wrong(whole, logits):
    prompts = {row.source: row.prompt for row in whole[0].rows}
    anew = with_rows(whole[2], lambda row: replace(row, prompt=prompts[row.source]))
    assert "state" in wrong(judged([*whole[:2], anew, whole[3]], logits, tolerance=BF16))
    assert "state" in wrong(judged(whole[:2], logits))


def test_rows_that_the_state_did_not_plan_are_wrong(whole, logits):
    off = replace(whole[2], rows=[row for row in whole[2].rows if not row.extra or row.source != 3])
    assert wrong(judged([*whole[:2], off, whole[3]], logits)) == {"plan"}
