"""AEPO in a bare torch loop: a tabular policy, and nothing of the library but its pure functions.

python examples/minimal.py
"""

import torch

from aepo.control.laws import PI, Seen
from aepo.entropy.statistics import logits_statistics
from aepo.loss.advantages import group_mean_std
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip

STATES, ACTIONS, GROUP, TARGET = 64, 50, 16, 1.0
torch.manual_seed(0)
logits = (1.5 * torch.randn(STATES, ACTIONS)).requires_grad_()
correct = torch.rand(STATES, ACTIONS).argsort(1) < 8  # eight right answers a state: entropy up to log 8 = 2.08
optimizer = torch.optim.Adam([logits], lr=0.02)
law, memory, command = PI(gain=5.0, integral_steps=20.0), {}, 0.0
states = torch.arange(STATES).repeat_interleave(GROUP)

for step in range(601):
    # Ordinary actions at temperature 1, compared within their group.
    actions = torch.multinomial(logits.detach().softmax(-1), GROUP, replacement=True).flatten()
    rewards = correct[states, actions].float()
    advantages = group_mean_std(rewards, states)

    # AEPO: positives drawn hot while entropy is under the target, cold while it is above; advantage 1, no ratio.
    temperature = 1.5 if command > 0 else 0.67
    drawn = torch.multinomial((logits.detach() / temperature).softmax(-1), GROUP, replacement=True).flatten()
    positives = correct[states, drawn].nonzero()[:, 0]
    positives = positives[torch.randperm(len(positives))[: round(abs(command) * len(states))]]
    rows = torch.cat([states, states[positives]])
    tokens = torch.cat([actions, drawn[positives]])
    weights = torch.cat([advantages, torch.ones(len(positives))])

    stats = logits_statistics(logits[rows], tokens)  # at temperature 1, also for the tempered rows
    old = stats.logprobs.detach()[:, None]
    loss = policy_loss(stats.logprobs[:, None], old, weights[:, None], token_mean(torch.ones_like(old)), Clip()).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    # The sensor reads the ordinary rows only; the law turns the reading into the next command.
    entropy = stats.entropy[: len(states)].mean().item()
    command, memory = law(Seen.at(entropy, TARGET), memory)
    if step % 100 == 0:
        print(f"step {step:3d}  entropy {entropy:.3f} (target {TARGET})  reward {rewards.mean():.3f}  {command:+.2f}")
