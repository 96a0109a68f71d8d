"""This module shows why positives drawn at another temperature change the entropy.

It treats one softmax state exactly, and a closed loop on a table of states.

Setting. There is one state with finite logits `theta`. `p = softmax(theta)`, `p_T = softmax(theta / T)`, and `H` is the
entropy of `p` in nats. `R(a)` is 1 for a correct action and 0 for a wrong one, and `Z_T = sum_a R(a) p_T(a)`. AEPO
(arXiv 2510.08141) adds the following term to the policy gradient:

    E_{a ~ p_T}[ R(a) grad log p(a) ]       sampled at temperature T, differentiated at temperature 1

A switch on the measured entropy sets T above or below 1. The functions of this module say what a small step along this
term does to `H`. They are closed-form, pure and batched: logits are [..., A], and masks of correct actions are bool
[..., A]. The docstring of each function gives the shape of its result.

Provenance. The temperature lemma and the update are the paper's (Lemma 4.1, Eq. 4). The paper's formulas for the
one-step theorem (Assumption 4.2, Theorem 4.3, Lemma B.5) were not available. `entropy_drift`, `entropy_drift_slope`,
their natural-gradient versions and `sign_condition` are reconstructed from the paper's words. They are complete without
its formulas. docs/theory.md says what they prove and what they do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy `H = -sum_a p(a) log p(a)` of softmax(logits), nats, [...]."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def entropy_slope_in_temperature(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return `dH(p_T)/dT = Var_{a ~ p_T}(theta_a) / T^3`, nats per unit of temperature, [...].

    It is never negative, and it is zero only for uniform logits. It is Lemma 4.1 of arXiv 2510.08141 (v1: Premise 1,
    "not universally proven"). The lemma is exact for one softmax. It says nothing about whole sequences, because T also
    changes which prefixes are visited.
    """
    probs = (logits / temperature).softmax(-1)
    centred = logits - (probs * logits).sum(-1, keepdim=True)
    return (probs * centred.square()).sum(-1) / temperature**3


def influence(logits: Tensor) -> Tensor:
    """Return the influence `w(a) = p(a) (log p(a) + H)`, nats, [..., A]. The gradient of H by the logits is `-w`.

    It is positive for actions that are more probable than `exp(-H)`: a higher logit of such an action lowers the
    entropy. It sums to zero over the actions.
    """
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    return probs * (logprobs - (probs * logprobs).sum(-1, keepdim=True))


def mean_influence(logits: Tensor) -> Tensor:
    """Return `W = sum_a p(a) w(a) = Cov_{a ~ p}(p(a), log p(a)) >= 0`, nats, [...]."""
    return (logits.softmax(-1) * influence(logits)).sum(-1)


def expected_gradient(logits: Tensor, sampling_probs: Tensor, signal: Tensor) -> Tensor:
    """Return `E_{a ~ q}[ x(a) grad_theta log p(a) ] = q x - p sum_a q(a) x(a)`, [..., A].

    It sums to zero over the actions.

    Args:
        logits: theta, [..., A].
        sampling_probs: q, [..., A].
        signal: x, [..., A].
    """
    pull = sampling_probs * signal
    return pull - logits.softmax(-1) * pull.sum(-1, keepdim=True)


def tempered_reinforce(logits: Tensor, correct: Tensor, temperature: float) -> Tensor:
    """Return AEPO's extra term, `E_{a ~ p_T}[R(a) grad log p(a)] = R p_T - p Z_T`, [..., A].

    It is Eq. 4 of arXiv 2510.08141. The log-probability is at temperature 1. No importance weight corrects for sampling
    at T.
    """
    return expected_gradient(logits, (logits / temperature).softmax(-1), correct.to(logits.dtype))


def entropy_drift(logits: Tensor, correct: Tensor, temperature: float) -> Tensor:
    """Return `F(T) = lim_{eta -> 0} (H(theta + eta g_T) - H(theta)) / eta`, nats per unit of step size, [...].

    `g_T` is `tempered_reinforce`. The closed form is

        F(T) = -( sum_a R(a) p_T(a) w(a) - Z_T W ) = -Z_T ( E_{p_T}[w | correct] - E_p[w] )

    The entropy rises exactly when the correct samples at temperature T have a lower average influence than the policy's
    own samples. The function is reconstructed (Lemma B.5 of arXiv 2510.08141); the paper's printed formulas were not
    available.
    """
    return -(influence(logits) * tempered_reinforce(logits, correct, temperature)).sum(-1)


def entropy_drift_slope(logits: Tensor, correct: Tensor) -> Tensor:
    """Return `F'(1) = sum_a R(a) w(a) (w(a) - W)`, nats per unit of step size and of temperature, [...].

    It says how much more the entropy rises when the samples are drawn slightly hotter. It may be negative; it is not
    where `sign_condition` holds. The function is reconstructed (Theorem 4.3 of arXiv 2510.08141); the paper's printed
    formulas were not available.
    """
    w = influence(logits)
    return (correct * w * (w - mean_influence(logits).unsqueeze(-1))).sum(-1)


def sign_condition(logits: Tensor, correct: Tensor) -> Tensor:
    """Return True where no correct action has `0 < w(a) < W`; then `F'(1) >= 0`. The result is bool, [...].

    The condition is sufficient, not necessary. It excludes correct actions that are a little more probable than
    `exp(-H)`: reinforcing them raises the entropy (w < W), but a higher temperature makes them rarer (w > 0). Only
    these actions contribute negatively to F'(1), each at worst `-W^2 / 4`. The comparison allows for rounding, so that
    uniform logits (w = W = 0) satisfy it. The function is reconstructed and stands in for Assumption 4.2 of arXiv
    2510.08141; the paper's printed formulas were not available.
    """
    slack = 16 * torch.finfo(logits.dtype).eps
    w = influence(logits)
    between = (w > slack) & (w < mean_influence(logits).unsqueeze(-1) - slack)
    return ~(between & correct).any(-1)


def natural_gradient_entropy_change(logits: Tensor, advantages: Tensor) -> Tensor:
    """Return `-Cov_{a ~ p}(log p(a), A(a))`, nats per unit of step size, [...].

    It is the change of H along the natural gradient.
    The natural policy gradient of one softmax adds to each logit its advantage, `theta += eta A`. A constant that is
    added to the advantages, [..., A], changes nothing. This is Lemma 1 of arXiv 2510.08141 v1 (after 2505.22617).
    """
    return -(influence(logits) * advantages).sum(-1)


def natural_entropy_drift(logits: Tensor, correct: Tensor, temperature: float) -> Tensor:
    """Return `F_n(T) = -sum_a R(a) p_T(a) (log p(a) + H)`, nats per unit of step size, [...].

    It is the drift along the natural gradient of AEPO's extra term, `theta += eta R p_T / p`. The function is
    reconstructed; the paper's printed formulas were not available.
    """
    ratio = ((logits / temperature).log_softmax(-1) - logits.log_softmax(-1)).exp()
    return natural_gradient_entropy_change(logits, correct * ratio)


def natural_entropy_drift_slope(logits: Tensor, correct: Tensor) -> Tensor:
    """Return `F_n'(1) = sum_a R(a) p(a) (log p(a) + H)^2`, nats per unit of step size and of temperature, [...].

    It is never negative, without any condition. The function is reconstructed; the paper's printed formulas were not
    available.
    """
    logprobs = logits.log_softmax(-1)
    surplus = logprobs + entropy(logits).unsqueeze(-1)
    return (correct * logprobs.exp() * surplus.square()).sum(-1)


@dataclass(frozen=True)
class Trajectory:
    """`Trajectory` records a closed loop, one number for each step."""

    entropy: Tensor
    """[steps], the mean entropy over the states before the step's update, nats."""
    reward: Tensor
    """[steps], the mean probability of a correct action over the states before the step's update."""
    temperature: Tensor
    """[steps], the temperature of the extra term; NaN where nothing was added."""

    @property
    def final_entropy(self) -> float:
        """Return the mean entropy over the last fifth of the steps, nats."""
        return self.entropy[-(len(self.entropy) // 5) :].mean().item()

    @property
    def final_reward(self) -> float:
        """Return the mean reward over the last fifth of the steps."""
        return self.reward[-(len(self.reward) // 5) :].mean().item()


def tabular_task(
    states: int = 64, actions: int = 50, correct: int = 8, *, scale: float = 1.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return a random tabular problem: logits ~ N(0, scale^2), and a mask with `correct` right actions in each state.

    Both are [states, actions], float64 and bool.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(states, actions, generator=generator, dtype=torch.float64)
    order = torch.rand(states, actions, generator=generator).argsort(-1)
    return logits, order < correct


def group_advantages(probs: Tensor, correct: Tensor, *, epsilon: float = 0.01) -> Tensor:
    """Return GRPO's advantage in expectation, `(R - m) / (s + epsilon)`, [..., A].

    m and s are the mean and the standard deviation of the binary reward under `probs`. The statistics of a group tend
    to them as the group grows. With `epsilon`, a state that is always solved has the advantage zero instead of 0/0.
    """
    reward = correct.to(probs.dtype)
    mean = (probs * reward).sum(-1, keepdim=True).clamp(0.0, 1.0)
    return (reward - mean) / ((mean * (1.0 - mean)).sqrt() + epsilon)


def tabular_aepo(
    logits: Tensor,
    correct: Tensor,
    target_entropy: float,
    *,
    steps: int = 4000,
    learning_rate: float = 0.1,
    alpha: float = 3.0,
    high: float = 1.5,
    low: float = 0.67,
    temperature_adjust: bool = True,
    positive_only: bool = True,
) -> Trajectory:
    """Run AEPO on a table of softmax states, with exact expectations instead of samples, and return its trajectory.

        theta += learning_rate ( E_{a ~ p}[A grad log p] + alpha E_{a ~ p_T}[R grad log p] )
        T = high if H < target_entropy else low        H: mean over states, measured one step before

    The first step has no earlier measurement and adds nothing. The defaults are ours and hold the entropy on
    `tabular_task`. The paper's constants for language models (1.2 and 0.8, few extra samples) do not hold it there.

    Tensors this small are fastest on one thread: `torch.set_num_threads(1)`.

    Args:
        logits: The logits at the start, [states, actions].
        correct: The mask of correct actions, bool, [states, actions].
        target_entropy: The target of the mean entropy, nats.
        steps: The number of steps.
        learning_rate: The step size.
        alpha: The weight of the extra term; 0 is GRPO alone.
        high: T while the entropy is under the target.
        low: T while it is not.
        temperature_adjust: False is an ablation of arXiv 2510.08141: the extra samples are drawn at T = 1.
        positive_only: False is an ablation of arXiv 2510.08141: the extra samples are weighted by their signed group
            advantage instead of R.
    """
    reward = correct.to(logits.dtype)
    entropies, rewards, temperatures = [], [], []
    measured: float | None = None
    for _ in range(steps):
        logprobs = logits.log_softmax(-1)
        probs = logprobs.exp()
        gradient = expected_gradient(logits, probs, group_advantages(probs, correct))
        temperature = float("nan")
        if measured is not None and alpha != 0.0:
            temperature = (high if measured < target_entropy else low) if temperature_adjust else 1.0
            tempered = (logits / temperature).softmax(-1)
            signal = reward if positive_only else group_advantages(tempered, correct)
            gradient = gradient + alpha * expected_gradient(logits, tempered, signal)
        measured = -(probs * logprobs).sum(-1).mean().item()
        entropies.append(measured)
        rewards.append((probs * reward).sum(-1).mean().item())
        temperatures.append(temperature)
        logits = logits + learning_rate * gradient
    return Trajectory(*torch.tensor([entropies, rewards, temperatures], dtype=torch.float64))
