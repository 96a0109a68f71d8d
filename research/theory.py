"""Why positives drawn at another temperature move entropy: one softmax state, exactly, and a closed loop.

Setting. One state with finite logits `theta`; `p = softmax(theta)`, `p_T = softmax(theta / T)`, `H` the
entropy of `p` in nats; `R(a)` is 1 for a correct action and 0 for a wrong one, `Z_T = sum_a R(a) p_T(a)`.
AEPO (arXiv 2510.08141) adds to the policy gradient the term

    E_{a ~ p_T}[ R(a) grad log p(a) ]       sampled at temperature T, differentiated at temperature 1

and picks T above or below 1 by a switch on the measured entropy. The functions say what a small step along
this term does to `H`. All are closed-form, pure and batched: logits are [..., A], masks of correct actions
bool [..., A]; a result's shape is in its docstring.

Provenance. The temperature lemma and the update are the paper's (Lemma 4.1, Eq. 4). Its formulas for the
one-step theorem (Assumption 4.2, Theorem 4.3, Lemma B.5) were not available: `entropy_drift`,
`entropy_drift_slope`, their natural-gradient versions and `sign_condition` are reconstructed from its words
and complete in themselves. docs/theory.md says what they prove and where they stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Entropy `H = -sum_a p(a) log p(a)` of softmax(logits), nats, [...]."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def entropy_slope_in_temperature(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`dH(p_T)/dT = Var_{a ~ p_T}(theta_a) / T^3`, nats per unit of temperature, [...]. Never negative.

    Zero only for uniform logits. arXiv 2510.08141, Lemma 4.1 (v1: Premise 1, "not universally proven"). For
    one softmax it is exact; about whole sequences it is silent, as T also changes which prefixes are visited.
    """
    probs = (logits / temperature).softmax(-1)
    centred = logits - (probs * logits).sum(-1, keepdim=True)
    return (probs * centred.square()).sum(-1) / temperature**3


def influence(logits: Tensor) -> Tensor:
    """`w(a) = p(a) (log p(a) + H)`, nats, [..., A]: the gradient of H in the logits is `-w`.

    Positive for actions more probable than `exp(-H)`: raising their logit lowers the entropy. Sums to zero.
    """
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    return probs * (logprobs - (probs * logprobs).sum(-1, keepdim=True))


def mean_influence(logits: Tensor) -> Tensor:
    """`W = sum_a p(a) w(a) = Cov_{a ~ p}(p(a), log p(a)) >= 0`, nats, [...]."""
    return (logits.softmax(-1) * influence(logits)).sum(-1)


def expected_gradient(logits: Tensor, sampling_probs: Tensor, signal: Tensor) -> Tensor:
    """`E_{a ~ q}[ x(a) grad_theta log p(a) ] = q x - p sum_a q(a) x(a)`, [..., A].

    `sampling_probs` is q, `signal` is x, each [..., A]. Sums to zero over the actions.
    """
    pull = sampling_probs * signal
    return pull - logits.softmax(-1) * pull.sum(-1, keepdim=True)


def tempered_reinforce(logits: Tensor, correct: Tensor, temperature: float) -> Tensor:
    """AEPO's extra term, `E_{a ~ p_T}[R(a) grad log p(a)] = R p_T - p Z_T`, [..., A].

    arXiv 2510.08141, Eq. 4. The log-probability is at temperature 1 and there is no importance weight back.
    """
    return expected_gradient(logits, (logits / temperature).softmax(-1), correct.to(logits.dtype))


def entropy_drift(logits: Tensor, correct: Tensor, temperature: float) -> Tensor:
    """`F(T) = lim_{eta -> 0} (H(theta + eta g_T) - H(theta)) / eta`, nats per unit of step size, [...].

    `g_T` is `tempered_reinforce`. In closed form

        F(T) = -( sum_a R(a) p_T(a) w(a) - Z_T W ) = -Z_T ( E_{p_T}[w | correct] - E_p[w] )

    so entropy rises exactly when the correct samples that T delivers have a lower average influence than the
    policy's own samples. Reconstructed (Lemma B.5 of arXiv 2510.08141); the paper's printed formulas were not
    available.
    """
    return -(influence(logits) * tempered_reinforce(logits, correct, temperature)).sum(-1)


def entropy_drift_slope(logits: Tensor, correct: Tensor) -> Tensor:
    """`F'(1) = sum_a R(a) w(a) (w(a) - W)`, [...]: how much more entropy a slightly hotter sample leaves.

    Nats per unit of step size and of temperature. May be negative; `sign_condition` suffices that it is not.
    Reconstructed (Theorem 4.3 of arXiv 2510.08141); the paper's printed formulas were not available.
    """
    w = influence(logits)
    return (correct * w * (w - mean_influence(logits).unsqueeze(-1))).sum(-1)


def sign_condition(logits: Tensor, correct: Tensor) -> Tensor:
    """True where no correct action has `0 < w(a) < W`; then `F'(1) >= 0`. Bool, [...].

    Sufficient, not necessary. Excluded are correct actions a little more probable than `exp(-H)`: reinforcing
    them raises the entropy (w < W), but heat makes them rarer (w > 0). They alone contribute negatively to
    F'(1), each at worst `-W^2 / 4`. The comparison allows for rounding, so that uniform logits (w = W = 0)
    qualify. Reconstructed, our stand-in for Assumption 4.2 of arXiv 2510.08141; the paper's printed formulas
    were not available.
    """
    slack = 16 * torch.finfo(logits.dtype).eps
    w = influence(logits)
    between = (w > slack) & (w < mean_influence(logits).unsqueeze(-1) - slack)
    return ~(between & correct).any(-1)


def natural_gradient_entropy_change(logits: Tensor, advantages: Tensor) -> Tensor:
    """`-Cov_{a ~ p}(log p(a), A(a))`, nats per unit of step size, [...]: dH along the natural gradient.

    The natural policy gradient of one softmax moves each logit by its advantage, `theta += eta A`; a constant
    added to the advantages, [..., A], changes nothing. arXiv 2510.08141 v1, Lemma 1 (after 2505.22617).
    """
    return -(influence(logits) * advantages).sum(-1)


def natural_entropy_drift(logits: Tensor, correct: Tensor, temperature: float) -> Tensor:
    """`F_n(T) = -sum_a R(a) p_T(a) (log p(a) + H)`, nats per unit of step size, [...].

    The drift along the natural gradient of the same term, `theta += eta R p_T / p`. Reconstructed; the
    paper's printed formulas were not available.
    """
    ratio = ((logits / temperature).log_softmax(-1) - logits.log_softmax(-1)).exp()
    return natural_gradient_entropy_change(logits, correct * ratio)


def natural_entropy_drift_slope(logits: Tensor, correct: Tensor) -> Tensor:
    """`F_n'(1) = sum_a R(a) p(a) (log p(a) + H)^2`, [...]. Never negative, without any condition.

    Nats per unit of step size and of temperature. Reconstructed; the paper's printed formulas were not
    available.
    """
    logprobs = logits.log_softmax(-1)
    surplus = logprobs + entropy(logits).unsqueeze(-1)
    return (correct * logprobs.exp() * surplus.square()).sum(-1)


@dataclass(frozen=True)
class Trajectory:
    """What a closed loop did, one number per step, each [steps].

    entropy: mean over states, nats, before the step's update. reward: mean probability of a correct action,
    likewise. temperature: of the extra term; NaN where nothing was added.
    """

    entropy: Tensor
    reward: Tensor
    temperature: Tensor

    @property
    def final_entropy(self) -> float:
        """Mean entropy over the last fifth of the steps, nats."""
        return self.entropy[-(len(self.entropy) // 5) :].mean().item()

    @property
    def final_reward(self) -> float:
        """Mean reward over the last fifth of the steps."""
        return self.reward[-(len(self.reward) // 5) :].mean().item()


def tabular_task(
    states: int = 64, actions: int = 50, correct: int = 8, *, scale: float = 1.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A random tabular problem: logits ~ N(0, scale^2) and a mask with `correct` right actions per state.

    Both [states, actions]; float64 and bool.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(states, actions, generator=generator, dtype=torch.float64)
    order = torch.rand(states, actions, generator=generator).argsort(-1)
    return logits, order < correct


def group_advantages(probs: Tensor, correct: Tensor, *, epsilon: float = 0.01) -> Tensor:
    """GRPO's advantage in expectation, `(R - m) / (s + epsilon)`, [..., A].

    m and s are mean and standard deviation of the binary reward under `probs`: what group statistics tend to
    as the group grows. `epsilon` keeps states that are always solved at zero instead of 0/0.
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
    """AEPO in full, on a table of softmax states and with exact expectations in place of samples.

        theta += learning_rate ( E_{a ~ p}[A grad log p] + alpha E_{a ~ p_T}[R grad log p] )
        T = high if H < target_entropy else low        H: mean over states, measured one step before

    The first step has no earlier measurement and adds nothing. `alpha=0` is GRPO alone. The ablations of
    arXiv 2510.08141: `temperature_adjust=False` draws the extra samples at T = 1; `positive_only=False`
    weighs them by their signed group advantage instead of R. The defaults are ours and hold the entropy on
    `tabular_task`; the paper's constants for language models (1.2 and 0.8, few extra samples) do not.

    Tensors this small are fastest on one thread: `torch.set_num_threads(1)`.
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
