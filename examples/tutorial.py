# %% [markdown]
# # Entropy in ten minutes
#
# This tutorial measures the entropy of a small policy, shows how GRPO makes it fall, and holds it at a target with
# AEPO. It needs torch and `aepo`, no GPU and no download, and runs in less than a minute on one core.
#
# Run it as a script, `python examples/tutorial.py`, or cell by cell in an editor that knows `# %%` cells (VS Code,
# PyCharm, Spyder). `jupytext --to notebook examples/tutorial.py` makes a notebook of it.

# %%
import math
from importlib.util import find_spec

import torch

import aepo

torch.set_num_threads(1)  # the tensors are small

# %% [markdown]
# ## 1. Measure the entropy
#
# A policy gives a probability to each action; for a language model, an action is the next token. The entropy
# H = -sum p log p says how uncertain the policy is. Its unit is the nat. H is 0 if one action is certain, and log V if
# all V actions are equally likely.
#
# Our policy is a table: 64 states (prompts), 50 actions (one-token answers), and one logit for each pair. Eight answers
# are right in each state.

# %%
STATES, ACTIONS, RIGHT, GROUP = 64, 50, 8, 16


def new_policy() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits [STATES, ACTIONS] and which answers are right, bool [STATES, ACTIONS]."""
    torch.manual_seed(0)
    table = (1.5 * torch.randn(STATES, ACTIONS)).requires_grad_()
    right = torch.rand(STATES, ACTIONS).argsort(1) < RIGHT
    return table, right


# %% [markdown]
# `token_statistics` takes the hidden states and the output layer of a model, and returns log-probabilities and exact
# entropies. It never stores the logits of all tokens at once, so it also serves a vocabulary of 150 000 tokens. In our
# table a row of logits is the hidden state, and the output layer is the identity.

# %%
HEAD = torch.eye(ACTIONS)


def statistics(table: torch.Tensor, states: torch.Tensor, actions: torch.Tensor):
    return aepo.token_statistics(table[states], HEAD, actions)


table, right = new_policy()
every_state = torch.arange(STATES)
first_action = torch.zeros(STATES, dtype=torch.int64)
entropy = statistics(table, every_state, first_action).entropy.mean().item()
uniform = statistics(torch.zeros_like(table), every_state, first_action).entropy.mean().item()
print(f"uniform policy: {uniform:.3f} nats (log {ACTIONS} = {math.log(ACTIONS):.3f})")
print(f"our policy: {entropy:.3f} nats")

# %% [markdown]
# Many trainers do not log the exact entropy but -log p of the sampled tokens. That is an unbiased estimate, if the
# tokens are sampled at temperature 1. At another temperature it estimates something else.


# %%
def sample(table: torch.Tensor, states: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return one action for each of the states, drawn at this temperature."""
    return torch.multinomial((table.detach()[states] / temperature).softmax(-1), 1)[:, 0]


many = every_state.repeat(1000)
for temperature in (1.0, 1.5):
    logprobs = statistics(table, many, sample(table, many, temperature)).logprobs
    estimate = aepo.sampled_entropy(logprobs, torch.ones_like(logprobs)).mean
    print(f"sampled estimate at temperature {temperature}: {estimate:.3f} nats")

# %% [markdown]
# ## 2. Watch it fall under GRPO
#
# A step of GRPO draws a group of answers in each state, compares the reward of each answer with its group's rewards
# (the advantage), and makes the better ones more likely. In `aepo` these are three choices: an advantage, a surrogate
# (the objective of a token), and an aggregate (the weight of each token in the loss).

# %%
ADVANTAGE, SURROGATE, WEIGHTS = aepo.GroupMeanStd(), aepo.Clip(), aepo.AGGREGATES["token-mean"]
STEP_STATES = every_state.repeat_interleave(GROUP)


def update(optimizer, table, states, actions, advantages) -> torch.Tensor:
    """Take one step of the optimizer; return the entropy of each row, nats, before the step."""
    found = statistics(table, states, actions)
    logprobs = found.logprobs[:, None]  # [rows, tokens]: an answer is one token
    weights = WEIGHTS(torch.ones_like(logprobs))
    loss = aepo.policy_loss(logprobs, logprobs.detach(), advantages[:, None], weights, SURROGATE).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return found.entropy.detach()


def grpo(steps: int) -> list[float]:
    """Train with GRPO; return the entropy of each step, nats."""
    table, right = new_policy()
    optimizer = torch.optim.Adam([table], lr=0.05)
    entropies = []
    for _ in range(steps):
        actions = sample(table, STEP_STATES)
        rewards = right[STEP_STATES, actions].float()
        advantages = ADVANTAGE(rewards, STEP_STATES)
        entropies.append(update(optimizer, table, STEP_STATES, actions, advantages).mean().item())
    return entropies


STEPS = 400
falling = grpo(STEPS)
print(f"GRPO: entropy {falling[0]:.3f} nats at first, {falling[-1]:.3f} nats after {STEPS} steps")

# %% [markdown]
# Each state has eight right answers, so a policy can be right with an entropy of log 8 = 2.08 nats. GRPO ends far below
# that: 0.27 nats are the entropy of a free choice between exp(0.27) = 1.3 answers.
#
# ## 3. Hold it with AEPO
#
# AEPO is a control loop around GRPO:
#
# * **Sensor:** the entropy of the ordinary answers.
# * **Law:** the error, target minus entropy, becomes a command from -1 (lower the entropy) to 1 (raise it).
# * **Actuator:** extra answers are drawn from the same policy, hot (T > 1) if the command is positive and cold (T < 1)
#   if it is negative. Only the right ones are trained on, with advantage 1. The size of the command says how many.
#
# A law is a pure function of what was seen and of what it remembers.

# %%
law = aepo.PI()
for error in (0.2, 0.05, -0.05):
    command, memory = law(aepo.Seen.at(entropy=1.0 - error, target=1.0), {})
    print(f"error {error:+.2f} nats: command {command:+.2f}")

# %% [markdown]
# The loop is the one of GRPO with three additions: it draws positives, it adds them to the batch, and it asks the law
# for the next command. A target is a schedule: a number of nats for each step.


# %%
def positives(table, right, command: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states and actions of as many right answers, drawn hot or cold, as the command asks for."""
    drawn = sample(table, STEP_STATES, 1.5 if command > 0 else 0.67)
    found = right[STEP_STATES, drawn].nonzero()[:, 0]
    chosen = found[torch.randperm(len(found))[: round(abs(command) * len(STEP_STATES))]]
    return STEP_STATES[chosen], drawn[chosen]


def controlled(law, target: aepo.Target, steps: int = STEPS) -> list[dict[str, float]]:
    """Train with GRPO and AEPO's loop; return a row for each step."""
    table, right = new_policy()
    optimizer = torch.optim.Adam([table], lr=0.05)
    command, memory, history = 0.0, {}, []
    for step in range(steps):
        actions = sample(table, STEP_STATES)
        rewards = right[STEP_STATES, actions].float()
        extra_states, extra_actions = positives(table, right, command)
        entropies = update(
            optimizer,
            table,
            torch.cat([STEP_STATES, extra_states]),
            torch.cat([actions, extra_actions]),
            torch.cat([ADVANTAGE(rewards, STEP_STATES), torch.ones(len(extra_states))]),
        )
        entropy = entropies[: len(STEP_STATES)].mean().item()  # the ordinary rows only
        aim = target.at(step)
        history.append({"entropy": entropy, "target": aim, "command": command, "reward": rewards.mean().item()})
        bands = tuple((target.at(step + ahead), target.at(step + ahead)) for ahead in range(3))
        command, memory = law(aepo.Seen(entropy, bands, command=command), memory)
    return history


held = controlled(law, aepo.Target("1.0"))
for step in (*range(0, STEPS, 50), STEPS - 1):
    row = held[step]
    numbers = f"entropy {row['entropy']:.3f}  command {row['command']:+.2f}  reward {row['reward']:.3f}"
    print(f"step {step:3d}: {numbers}  (GRPO's entropy {falling[step]:.3f})")

# %% [markdown]
# ## 4. Read the command
#
# The command tells you what the loop does. At first the entropy is far above the target, the command is -1, and cold
# positives pull the entropy down faster than GRPO alone. The entropy then goes below the target, because the optimizer
# has momentum, and the command becomes +1. At the end the command stays near a small positive value: that is how much
# correction GRPO needs at this entropy.
#
# A command that stays at +1 or -1 is saturated: the actuator has no more to give, and the target is out of reach.


# %%
def late(history: list[dict[str, float]], name: str) -> torch.Tensor:
    """Return one number for each step of the last quarter of a run."""
    return torch.tensor([row[name] for row in history[-STEPS // 4 :]])


saturated = (late(held, "command").abs() >= 1).float().mean()
print(f"AEPO with PI: entropy {late(held, 'entropy').mean():.3f}, target 1.0, saturated {saturated:.0%} of the steps")

# %% [markdown]
# ## 5. Change the law
#
# `Switch` is the law of the AEPO paper: always +1 or -1. It holds the mean too, but the entropy goes up and down around
# the target. `Proportional` has no integral. GRPO pulls the entropy down all the time, so a steady error remains:
# without an error there is no command. `SelfTuning`, the default of `aepo train`, has no gain to choose: it estimates
# from the run what a command does and what the entropy does by itself, and aims the command by that.

# %%
laws = {
    "PI": law,
    "Proportional": aepo.Proportional(gain=2.0),
    "Switch": aepo.Switch(),
    "SelfTuning": aepo.SelfTuning(),
}
histories = {name: held if name == "PI" else controlled(law, aepo.Target("1.0")) for name, law in laws.items()}
for name, history in histories.items():
    entropies = late(history, "entropy")
    print(f"{name:12s}: entropy {entropies.mean():.3f} +- {entropies.std():.3f}")

# %% [markdown]
# ## 6. Follow a schedule
#
# A target can change with the step: `linear(a,b,n)`, `cosine(a,b,n)`, `sine(mean,amplitude,period)`, `piecewise(...)`.
# In a run of `aepo train`, `0.6x` is 0.6 times the first measured entropy.

# %%
ramp = controlled(law, aepo.Target(f"linear(1.5,0.5,{STEPS - 1})"))
for step in (STEPS // 2, 3 * STEPS // 4, STEPS - 1):
    print(f"schedule, step {step}: target {ramp[step]['target']:.3f}, entropy {ramp[step]['entropy']:.3f}")

# %% [markdown]
# ## 7. Look at it
#
# The picture goes to the current folder, if matplotlib is installed.

# %%
if find_spec("matplotlib"):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot(falling, label="GRPO")
    for name, history in {**histories, "PI on a schedule": ramp}.items():
        axes.plot([row["entropy"] for row in history], label=name)
    axes.plot([row["target"] for row in ramp], "k:", linewidth=1)
    axes.axhline(1.0, color="k", linestyle=":", linewidth=1)
    axes.set(xlabel="step", ylabel="entropy, nats", ylim=(0, None))
    axes.legend()
    figure.savefig("tutorial.png", dpi=120)
    print("picture: tutorial.png")
else:
    print("matplotlib is not installed: no picture")

# %% [markdown]
# ## 8. From here to a language model
#
# `preset` gives a published method by name, and `make_algorithm` changes its settings. A wrong setting is refused with
# one line that says what would do.

# %%
algorithm = aepo.make_algorithm("aepo", {"control.target": "linear(1x,0.5x,200)", "control.law.gain": 0.7})
print(f"{len(aepo.METHODS)} methods; this one: {algorithm.control.target}, {algorithm.control.law}")
try:
    aepo.make_algorithm("aepo", {"control.law.gain": -1.0})
except aepo.InvalidValue as refusal:
    print(f"refused: {refusal}")

# %% [markdown]
# The same settings on the command line train a language model:
#
# ```
# aepo train --target "linear(1x,0.5x,200)" --set control.law.gain=5
# aepo methods aepo        # this method, its settings and their values
# aepo watch runs/...      # the entropy, the target and the command of a run
# ```
#
# Read on: docs/entropy.md says what entropy is and what other trainers log under that name, docs/methods/ has a page
# for each method, docs/api.md lists the names of `import aepo`.
