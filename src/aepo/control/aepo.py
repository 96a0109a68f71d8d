"""AEPO: hold the entropy at a target with REINFORCE on tempered positives (2510.08141).

    grad J = E_{o ~ pi}  [sum_t grad log pi(o_t) A]            the base algorithm's
           + alpha E_{o ~ pi*}[sum_t grad log pi(o_t) R]       the control's

pi* is the policy at T_high while the measured entropy is under the target and at T_low while it is above. The
log-probability that is differentiated is always at temperature 1, and wrong answers contribute nothing. The law decides
the direction and how many positives (`sampled`) or how much weight (`reweighted`) are used.

The papers' settings and the authors' code, where they differ from this default, are presets (methods.py);
docs/methods/aepo.md lists every difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import (
    ExtraGroup,
    Measured,
    Needs,
    Scored,
    State,
    Step,
    require_rows,
    rows,
)
from aepo.control.closed_loop import ClosedLoop, missing_authority
from aepo.control.distributions import ByLength, TargetDistribution, Temperature
from aepo.control.laws import Constant, Law
from aepo.control.quantities import Entropy, Length
from aepo.control.schedules import Target
from aepo.control.self_tuning import SelfTuning
from aepo.errors import require
from aepo.types import Sample

# The authors' threshold on the group-normalised advantage: rows of all-correct groups do not pass it.
ADVANTAGE_THRESHOLD = 0.05
# How fast the running share of usable extra completions follows what is drawn.
PASS_RATE_MEMORY = 0.8
# The reach from which more of it gives hardly more authority: the positives then rule the update.
MOST_REACH = 1.9


@dataclass(frozen=True, kw_only=True)
class AEPO(ClosedLoop):
    """`AEPO` adds right answers from a tempered policy. Each field is a choice that the paper, its code or we make."""

    name: ClassVar[str] = "aepo"

    target: Target = Target("0.6x")
    """Entropy to hold: nats per token, a multiple of the first measured entropy such as 0.6x, or a schedule."""
    law: Law = SelfTuning()
    """How the reading becomes a command from -1 to 1."""
    approach: int = 50
    """Steps, at most a third of the run, in which a constant target is reached at the latest. On the way the entropy
    may be anywhere between the target and a line to it from the first entropy, so the control does not act while the
    policy goes there by itself. 0: the target holds from the first step.
    """
    reach: float = 1.95
    """Largest command of a law that grades its commands, under 2. A command c above 1 uses as many positives as 1, each
    with 1 / (2 - c) times the weight: 20 times at 1.95.
    """
    variates: bool = True
    """Take what is known of the drawn prompts from earlier epochs out of the reading (control variates)."""
    distribution: TargetDistribution = Temperature()
    """pi*: where the positives come from."""
    positives: Literal["sampled", "reweighted"] = "sampled"
    """`sampled` draws positives from pi* in the step's one sampling call. `reweighted` takes the ordinary correct
    completions with importance weights pi*/pi per token, and draws nothing.
    """
    positive_by: Literal["reward", "advantage"] = "reward"
    """What a positive is: `reward`, R = 1 (the paper), or `advantage`, above 0.05 in its own group (the authors' code).
    """
    count_high: int | float = 0.25
    """Positives used at command +1: a number of completions (integer) or a share of the step's (fraction)."""
    count_low: int | float = 0.25
    """Positives used at command -1: a number of completions (integer) or a share of the step's (fraction)."""
    weight: float = 2.0
    """Advantage of a positive; alpha = weight * positives / completions."""
    weighting: Literal["command", "odds"] = "command"
    """Strength a of reweighted positives. `command`: a = |command| * weight. `odds` is DCPO's (2601.12730): a = x / (1
    + x) with x = |command| * weight / (the step's share of right answers), larger where few are right.
    """
    per_prompt: int | None = None
    """Extra completions of each chosen prompt; none for the group size."""
    prompts: float = 1.0
    """Share of the step's prompts that may be drawn again."""
    draw: Literal["enough", "all"] = "enough"
    """`enough`: as many extra completions as give the wanted positives at the running pass rate. `all`: as many as are
    allowed.
    """
    choose: Literal["random", "first"] = "random"
    """Which prompts and positives are taken when there are more than needed: `random`, or `first` (the code)."""
    join: Literal["append", "replace"] = "append"
    """`append` adds positives to the ordinary rows. `replace` puts them in the place of as many ordinary rows: random
    ones, or the first with choose=first.
    """
    shuffle: bool = True
    """Spread ordinary and extra rows each over all minibatches. False keeps the rows in the order of `mix` (the code);
    extra rows lie in front with join=replace, and behind the ordinary rows with join=append.
    """
    positive_loss: Literal["surrogate", "reinforce"] = "surrogate"
    """What sampled positives are trained on. `surrogate`: the algorithm's surrogate with the ratio at temperature 1, so
    positives can be clipped from the second minibatch on (the code). `reinforce`: A * grad log pi in every minibatch,
    without a ratio and without a clip (the papers' formula).
    """
    start: Literal["measure", "hot"] = "measure"
    """`measure`: the first step adds nothing. `hot`: it acts as if entropy were 0 (the code)."""
    sensor: Literal["exact", "mixed-sampled"] = "exact"
    """`exact` entropy (docs/entropy.md), or `mixed-sampled`: -log pi on the trained rows during the update (the code).
    """
    temperature_adjust: bool = True
    """Draw at T_high or T_low; false is the papers' ablation A (T = 1)."""
    positive_only: bool = True
    """Use positives only; false is the papers' ablation B: every extra row, with its signed group advantage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rows("control.count_high", self.count_high)
        require_rows("control.count_low", self.count_low)
        require(self.weight > 0, "control.weight", self.weight, "a positive number")
        require(0 < self.reach < 2, "control.reach", self.reach, "a number above 0 and under 2, such as 1.95")
        require(0 < self.prompts <= 1, "control.prompts", self.prompts, "a share of the prompts in (0, 1]")
        self._check_combinations()
        exact = self.sensor == "exact"
        require(exact or not self.variates, "control.variates", True, "false with the sensor mixed-sampled")
        needs_group = self.positive_by == "advantage" or not self.positive_only
        least = 2 if needs_group and self.positives == "sampled" else 1
        require(
            self.per_prompt is None or self.per_prompt >= least,
            "control.per_prompt",
            self.per_prompt,
            f"at least {least}, or none for the group size",
        )

    def _check_combinations(self) -> None:
        reweighted = self.positives == "reweighted"
        require(reweighted or self.weighting == "command", "control.weighting", self.weighting, "command when sampled")
        wanted = "surrogate with reweighted positives, which are ordinary rows"
        require(not (reweighted and self.reinforces_extra), "control.positive_loss", self.positive_loss, wanted)
        if reweighted and self.join == "replace" and self.weighting == "command":
            # (1 - a) A with a above 1 would train on -A.
            wanted = "at most 1 for reweighted with join=replace"
            require(self.weight <= 1, "control.weight", self.weight, wanted)
            require(self.most_command <= 1, "control.reach", self.reach, wanted)
        kind = self.distribution.name
        # Neither moves the other's quantity in a known direction, so the loop would push without a sense.
        moves = isinstance(self.quantity, Entropy) or not isinstance(self.distribution, Temperature)
        wanted = f"one that moves the quantity {self.quantity.name}, such as length or your own module:Class"
        require(moves, "control.distribution", kind, wanted)
        lengthens = isinstance(self.quantity, Length) or type(self.distribution) is not ByLength
        require(lengthens, "control.distribution", kind, f"one that moves the quantity {self.quantity.name}")
        steers = self.distribution.two_sided or isinstance(self.law, Constant)
        require(steers, "control.law", self.law.name, f"constant with distribution {kind}")
        adjusts = self.temperature_adjust or isinstance(self.distribution, Temperature)
        require(adjusts, "control.temperature_adjust", False, f"true with distribution {kind}")

    # --- the loop: sensor and state ---------------------------------------------------------------------

    def initial_state(self) -> State:
        """Return a state without pass rates. With start=hot, the first command is already full on."""
        hot = {"command": 1.0} if self.start == "hot" else {}
        return {**super().initial_state(), "pass_rate": {}, **hot}

    def state_at(self, command: float, extra_accuracy: float = 1.0) -> State:
        """Return a state at this command, with the pass rates that the command would meet."""
        rates = {"1": extra_accuracy, "-1": extra_accuracy}
        return {**super().state_at(command), "pass_rate": rates}

    @property
    def reinforces_extra(self) -> bool:  # type: ignore[override]
        """Whether the loss of extra rows is REINFORCE's."""
        return self.positive_loss == "reinforce"

    @property
    def adds_rows(self) -> bool:
        """Whether sampled positives are appended."""
        return self.positives == "sampled" and self.join == "append"

    @property
    def most_command(self) -> float:
        """The reach, for a law whose commands have a size; the papers' switch is full on at 1."""
        return self.reach if self.law.graded else 1.0

    def in_place(self) -> AEPO:
        """Return the control whose positives replace ordinary rows."""
        return replace(self, join="replace") if self.adds_rows else self

    def reading(self, measured: Measured) -> float:
        """Return the quantity on the ordinary rows, or the authors' sampled estimate on the mixed ones."""
        return super().reading(measured) if self.sensor == "exact" else measured.mixed_sampled_entropy.mean

    def reading_se(self, measured: Measured) -> float:
        """Return the standard error of the reading; that of the authors' estimate is not known."""
        return super().reading_se(measured) if self.sensor == "exact" else math.nan

    def update(self, state: State, measured: Measured) -> State:
        """Update the state, and also the usable share of the extra completions for each direction."""
        direction = _direction(state)
        rates = dict(state["pass_rate"])
        if measured.extra:
            share = len(self._usable(measured.extra)) / len(measured.extra)
            before = rates.get(str(direction), share)
            rates[str(direction)] = PASS_RATE_MEMORY * before + (1 - PASS_RATE_MEMORY) * share
        rates["ordinary"] = measured.right.mean
        short = self.positives == "sampled" and self._short(state, measured)
        return super().update({**state, "pass_rate": rates, "short": short}, measured)

    def _short(self, state: State, measured: Measured) -> bool:
        """Return whether fewer positives were found than the command asked for."""
        return len(self._usable(measured.extra)) < self._wanted(state, measured.scored.step)

    def advice(self, state: State) -> str:
        """Return which of the count, the weight and the temperatures would give the missing authority."""
        needed = missing_authority(state, self.most_command)
        if state.get("short"):
            return f"{needed}; too few right answers are found: more extra completions (control.per_prompt, prompts)"
        if self.most_command < MOST_REACH:
            count = "" if self.positives == "reweighted" else ", control.count_high and count_low"
            reach = ", or control.reach up to 1.95" if self.law.graded else ""
            return f"{needed}: raise control.weight{count}{reach}"
        return f"{needed}: move the temperatures further from 1 (control.distribution.high and low)"

    # --- sampled positives -------------------------------------------------------------------------------

    @property
    def needs_right(self) -> bool:
        """Return whether positives are chosen by what counts as right."""
        return self.positive_only and self.positive_by == "reward"

    def plan(self, state: State, step: Step) -> tuple[ExtraGroup, ...]:
        """Return about as many extra completions as will be used, `per_prompt` of each chosen prompt."""
        wanted = self._wanted(state, step)
        if self.positives != "sampled" or wanted == 0:
            return ()
        per_prompt = self.per_prompt or step.group_size
        most = max(1, int(self.prompts * step.prompts))
        groups = most
        if self.draw == "enough":
            needed = wanted * self.distribution.candidates / self._pass_rate(state)
            groups = min(most, -(-round(needed) // per_prompt))
        order = list(range(step.prompts))
        if self.choose == "random":
            order = torch.randperm(step.prompts, generator=step.generator("extra prompts")).tolist()
        temperature = self._distribution().temperature(_direction(state))
        return tuple(ExtraGroup(prompt, per_prompt, temperature) for prompt in order[:groups])

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """Append the chosen positives with advantage `weight`, or put them in the place of ordinary rows."""
        if self.positives == "reweighted":
            return [*ordinary, *extra]
        chosen = self._chosen(self._usable(extra), self._wanted(state, step), _direction(state), step)
        times = max(1.0, _strength(state))
        chosen = [replace(s, advantage=times * (self.weight if self.positive_only else s.advantage)) for s in chosen]
        if self.join == "append" or not chosen:
            return [*ordinary, *chosen]
        trained = [i for i, sample in enumerate(ordinary) if sample.trained]
        out = {trained[i] for i in self._replaced(len(trained), len(chosen), step)}
        kept = [replace(sample, trained=False) if i in out else sample for i, sample in enumerate(ordinary)]
        return [*chosen, *kept]

    def _usable(self, extra: Sequence[Sample]) -> list[Sample]:
        if not self.positive_only:
            return [sample for sample in extra if sample.advantage != 0]
        if self.positive_by == "advantage":
            return [sample for sample in extra if sample.advantage > ADVANTAGE_THRESHOLD]
        return [sample for sample in extra if sample.rollout.right]

    def _chosen(self, usable: list[Sample], wanted: int, direction: int, step: Step) -> list[Sample]:
        """Return `wanted` of the usable ones: the first, or a draw without replacement by weight (Gumbel top-k)."""
        if self.choose == "first" or len(usable) <= wanted:
            return usable[:wanted]
        log_weights = torch.tensor([self.distribution.log_weight(s.rollout, direction) for s in usable])
        uniform = torch.rand(len(usable), generator=step.generator("choose positives"), dtype=torch.float64)
        keys = log_weights - torch.log(-torch.log(uniform))
        best = keys.topk(wanted).indices.sort().values
        return [usable[i] for i in best.tolist()]

    def _replaced(self, ordinary: int, count: int, step: Step) -> list[int]:
        if self.choose == "first":
            return list(range(min(count, ordinary)))
        return torch.randperm(ordinary, generator=step.generator("replace rows"))[:count].tolist()

    # --- reweighted positives ----------------------------------------------------------------------------

    def needs(self, state: State) -> Needs:
        """Ask for log-probabilities at the other temperature, in the same pass, when they will be used."""
        if self.positives == "sampled" or not state["command"]:
            return Needs()
        return Needs(temperatures=self._distribution().statistics(_direction(state)))

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return A + a R pi*/pi (append), or (1 - a) A + a R pi*/pi (replace), a = |command| * weight."""
        if self.positives == "sampled" or not state["command"]:
            return advantages
        strength = self._weighted(scored, _strength(state) * self.weight)
        ratio = self._distribution().log_ratio(scored, _direction(state)).exp()
        positive = scored.batch.right[:, None] * scored.batch.mask
        if self.positive_by == "advantage":
            positive = positive * (advantages > ADVANTAGE_THRESHOLD)
        kept = 1.0 if self.join == "append" else 1.0 - strength
        return kept * advantages + strength * positive * ratio

    def _weighted(self, scored: Scored, strength: float) -> float:
        """Return a, from the command's strength * weight."""
        if self.weighting == "command":
            return strength
        right = scored.batch.right[~scored.batch.extra].float().mean().item()
        return strength / (strength + right) if right > 0 else 0.0

    # --- shared ------------------------------------------------------------------------------------------

    def _wanted(self, state: State, step: Step) -> int:
        """Return how many positives the command asks for in this step."""
        command: float = state["command"] or 0.0
        full = self.count_high if command > 0 else self.count_low
        return round(min(1.0, abs(command)) * rows(full, step.prompts * step.group_size))

    def _pass_rate(self, state: State) -> float:
        """Return the expected share of usable extra completions; until it is known, that of right ordinary ones."""
        rates: dict[str, float] = state["pass_rate"]
        return max(rates.get(str(_direction(state)), rates.get("ordinary", 1.0)), 0.05)

    def _distribution(self) -> TargetDistribution:
        return self.distribution if self.temperature_adjust else Temperature(high=1.0, low=1.0)


def _direction(state: State) -> int:
    return 1 if (state["command"] or 0.0) > 0 else -1


def _strength(state: State) -> float:
    """Return how many times the full strength a command asks for: |c| up to 1, and 1 / (2 - |c|) above it.

    The positives rule a normalised update more and more, so its effect on the entropy grows less than their weight.
    With this curve it is about linear in the command, as the laws suppose (docs/theory.md).
    """
    command: float = abs(state["command"] or 0.0)
    return command if command <= 1 else 1 / (2 - command)
