"""For VERL_USE_EXTERNAL_MODULES: all that verl needs on a CPU; AEPO_TEST_DUMP names a folder for evidence."""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from pathlib import Path

import torch

from tests_verl.support import platform  # noqa: F401  (first: the rest asks for the platform)

# isort: split
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from tests_verl.support import rollout  # noqa: F401

torch.set_num_threads(1)
seen: Counter[int] = Counter()


def soon(self, partition_id, last_debug_time):
    """Look for finished completions ten times a second; verl looks every two seconds."""
    time.sleep(0.1)
    return last_debug_time


def dumping(policy_loss):
    """`policy_loss`, which leaves its process and each microbatch (loss-STEP-RANK-NUMBER.pt) in AEPO_TEST_DUMP."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.padding import no_padding_2_padding

    from aepo.integrations.verl import loss as module
    from aepo.integrations.verl.rows import step_from_json

    @functools.wraps(policy_loss)
    def with_evidence(model_output, data, dp_group=None, **settings):
        output, metrics = policy_loss(model_output, data, dp_group, **settings)
        if not os.environ.get("AEPO_TEST_DUMP"):
            return output, metrics
        folder = Path(os.environ["AEPO_TEST_DUMP"])
        step = step_from_json(tu.get_non_tensor_data(data, "aepo_step", None)).number
        new = no_padding_2_padding(model_output["log_probs"], data).detach()
        kept = {"fields": module.padded(data), "new": new, "loss": output.item(), "ranks": data["dp_size"]}
        kept |= {name: tu.get_non_tensor_data(data, f"aepo_{name}", None) for name in ("state", "step")}
        kept["fields"]["sampler"] = data.select("rollout_log_probs").to_padded_tensor()["rollout_log_probs"]
        (folder / "worker.pid").write_text(str(os.getpid()))
        torch.save(kept, folder / f"loss-{step}-{torch.distributed.get_rank()}-{seen[step]}.pt")
        seen[step] += 1
        return output, metrics

    return with_evidence


ReplayBuffer._wait_for_next_poll = soon
# The trainer imports `policy_loss` by name, so it is replaced before the trainer is imported.
from aepo.integrations.verl import loss  # noqa: E402

loss.policy_loss = dumping(loss.policy_loss)
