"""`python -m aepo.integrations.verl.smoke --model MODEL` trains four steps on this machine and says what is right.

It needs one GPU with verl's rollout engine and downloads no data: the problems are sums. The run stops after two steps
and goes on from its checkpoint. Then plain transformers score every completion that was drawn, and each check prints a
line (`aepo.integrations.verl.verdict`). The exit code is 0 if all checks are right, else 1.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue, require

STEPS, STOP = 4, 2
PROBLEMS = 64
# The learning rate is so low that all steps can be compared with the weights before the first update.
DEFAULTS = (
    *("aepo.method=aepo", "aepo.target=piecewise(0:0.01x,3:20x,4:0.01x)", "aepo.seed=0"),
    *("data.train_batch_size=8", "data.max_prompt_length=128", "data.max_response_length=128"),
    *("data.dataloader_num_workers=0", "data.shuffle=False", "actor_rollout_ref.rollout.n=8"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.actor.optim.lr=1e-7"),
    *("actor_rollout_ref.actor.use_dynamic_bsz=True", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192"),
    *("actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.tensor_model_parallel_size=1"),
    *("actor_rollout_ref.rollout.gpu_memory_utilization=0.4", "actor_rollout_ref.rollout.enforce_eager=True"),
    *("actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True", "actor_rollout_ref.rollout.agent.num_workers=1"),
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=8192",
    *("reward.num_workers=1", "reward.custom_reward_function.name=compute_score"),
    *("trainer.n_gpus_per_node=1", "trainer.nnodes=1", 'trainer.logger=["console"]'),
)
NOT_CHECKED = (
    "weights that move: the learning rate is 1e-7, so a rollout engine that kept its first weights is not seen",
    "several GPUs or nodes, sequence parallelism, LoRA, a reference model, other methods than aepo",
    "rewards, validation, speed and memory at your own lengths",
)


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """Return verl's reward: 1.0 if the last number of the completion is the answer, else 0.0."""
    numbers = re.findall(r"\d+", solution_str)
    return float(bool(numbers) and numbers[-1] == ground_truth)


def problem(index: int) -> dict[str, Any]:
    """Return a sum of three numbers in verl's columns."""
    draw = random.Random(index)
    numbers = [draw.randint(2, 99) for _ in range(3)]
    text = f"What is {' + '.join(map(str, numbers))}? Think in a few words, then give the number."
    return {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"style": "rule", "ground_truth": str(sum(numbers))},
        "extra_info": {"index": index},
    }


def write_problems(file: Path) -> None:
    """Write the problems as Parquet."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([problem(index) for index in range(PROBLEMS)]), file)


def arguments(model: str, out: Path, given: Sequence[str], steps: int) -> list[str]:
    """Return the command line of a part of the run, which ends after `steps` steps of the whole run.

    The caller's overrides stand behind the defaults. They cannot change what the checks rely on.
    """
    data = out / "sums.parquet"
    return [
        *DEFAULTS,
        f"actor_rollout_ref.model.path={model}",
        *(f"data.train_files={data}", f"data.val_files={data}"),
        f"reward.custom_reward_function.path={Path(__file__).resolve()}",
        *given,
        *("actor_rollout_ref.rollout.calculate_log_probs=True", f"aepo.evidence={out / 'evidence'}"),
        *("trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.total_epochs=100"),
        *(f"trainer.total_training_steps={steps}", "trainer.resume_mode=auto"),
        f"trainer.save_freq={STOP if steps == STOP else -1}",
        f"trainer.default_local_dir={out / 'checkpoints'}",
    ]


def train(model: str, out: Path, given: Sequence[str]) -> bool:
    """Run both parts, each in a process of its own; return whether both ended well."""
    for part, steps in enumerate((STOP, STEPS), start=1):
        log = out / f"part-{part}.log"
        print(f"part {part} of 2: verl trains to step {steps} of {STEPS}; its output is in {log}", flush=True)
        command = [sys.executable, "-m", "aepo.integrations.verl", *arguments(model, out, given, steps)]
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        if code != 0:
            print("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
            print(f"verdict: none, because verl ended with status {code} in part {part}")
            return False
    return True


def policy(path: str) -> Any:
    """Return the logits of a model of transformers in float32, on a GPU if there is one (`verdict.Logits`)."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.to(device).eval()

    @torch.no_grad()
    def logits(row: Any) -> Any:
        ids = torch.tensor([[*row.prompt, *row.tokens]], device=device)
        kept: Any = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
        return kept

    return logits


def judge(model: str, out: Path, given: Sequence[str]) -> int:
    """Print the findings on the run in `out` and the verdict; return the exit code."""
    from aepo.integrations.verl import evidence, verdict
    from aepo.integrations.verl.__main__ import compose, overrides
    from aepo.integrations.verl.settings import FLOAT32, get, precision, read
    from aepo.integrations.verl.state import STATE_FILE

    config = compose(overrides(arguments(model, out, given, STEPS)))
    exact = precision(config) in FLOAT32
    saved = json.loads((out / f"checkpoints/global_step_{STOP}" / STATE_FILE).read_text())
    findings = verdict.verdict(
        evidence.read(out / "evidence"),
        policy(get(config, "actor_rollout_ref.model.path")),
        read(config).algorithm,
        saved=saved["state"],
        resumed=STOP,
        tolerance=verdict.FLOAT32 if exact else verdict.BF16,
    )
    print("\n".join(map(str, findings)))
    print("\n".join(f"not checked  {text}" for text in NOT_CHECKED))
    wrong = sum(found.status == "WRONG" for found in findings)
    missing = verdict.missing(findings)
    if wrong:
        print(f"verdict: WRONG, {wrong} of {len(findings)} checks")
    elif missing:
        print(f"verdict: none, because nothing could be checked of: {', '.join(missing)}")
    else:
        print(f"verdict: right, {sum(found.status == 'right' for found in findings)} checks")
    return int(bool(wrong or missing))


def check(words: Sequence[str]) -> None:
    """Refuse settings that the trainer would refuse, before verl starts.

    Args:
        words: The command line of a part of the run.
    """
    from aepo.integrations.verl.__main__ import compose, overrides
    from aepo.integrations.verl.settings import read

    read(compose(overrides(words)))


def main(words: Sequence[str]) -> int:
    """Run the smoke test and return the exit code."""
    summary = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m aepo.integrations.verl.smoke", description=summary)
    parser.add_argument("--model", required=True, help="a model of the hub or its folder, such as Qwen/Qwen2.5-0.5B")
    parser.add_argument("--out", default="verl-smoke", type=Path, help="a new folder (default: verl-smoke)")
    parser.add_argument("overrides", nargs="*", help="settings of verl, such as trainer.n_gpus_per_node=2")
    chosen = parser.parse_args(words)
    out = chosen.out.resolve()
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    require(empty, "--out", str(chosen.out), "a new or an empty folder")
    there = Path(chosen.model).exists()
    wanted = "a folder that exists, or the name of a model of the hub"
    require(there or not chosen.model.startswith(("/", ".", "~")), "--model", chosen.model, wanted)
    model = str(Path(chosen.model).resolve()) if there else chosen.model
    check(arguments(model, out, chosen.overrides, STEPS))
    out.mkdir(parents=True, exist_ok=True)
    write_problems(out / "sums.parquet")
    return judge(model, out, chosen.overrides) if train(model, out, chosen.overrides) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InvalidValue as error:
        print(f"aepo: {error}", file=sys.stderr)
        sys.exit(2)
