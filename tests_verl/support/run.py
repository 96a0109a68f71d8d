"""Start verl in a process of its own, and read what it logged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests_verl.support.forks import SOCKET, ForkServer

ROOT = Path(__file__).resolve().parents[2]
STOCK = "verl.trainer.main_ppo"
OURS = "aepo.integrations.verl"
SMOKE = "aepo.integrations.verl.smoke"
ONE_NODE = ("trainer.nnodes=1", "trainer.n_gpus_per_node=2")
TWO_NODES = ("trainer.nnodes=2", "trainer.n_gpus_per_node=1")
OWN_RAY = (
    *("ray_kwargs.ray_init.num_cpus=20", "+ray_kwargs.ray_init.num_gpus=2"),
    *("+ray_kwargs.ray_init.include_dashboard=False", "+ray_kwargs.ray_init.address=local"),
)


@dataclass(frozen=True)
class Runtime:
    """A Ray cluster of two nodes that several runs share, and the fork server that their processes come from."""

    address: str
    forks: ForkServer

    def settings(self, out: Path) -> list[str]:
        """What lets a run use it. Environment variables of a run reach its workers by these settings alone."""
        init = "ray_kwargs.ray_init"
        own = {"AEPO_TEST_DUMP": out / "dump", "VERL_FILE_LOGGER_PATH": out / "metrics.jsonl"}
        return [
            *(f"+{init}.address={self.address}", f"{init}.num_cpus=null"),
            f"++{init}.runtime_env.py_executable='{self.forks.executable}'",
            *(f"++{init}.runtime_env.env_vars.{name}='{value}'" for name, value in own.items()),
            *TWO_NODES,
        ]


@contextmanager
def shared_runtimes(folder: Path, count: int) -> Iterator[list[Runtime]]:
    """Start so many clusters: verl's runs on one cluster take each other's data if they run at once."""
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ.update(environment(folder))  # a cluster's processes have its environment, not the driver's
    forks = ForkServer(folder, dict(os.environ))
    os.environ[SOCKET] = str(forks.path)
    clusters = [Cluster() for _ in range(count)]
    try:
        for cluster in clusters:
            for _ in range(2):
                cluster.add_node(num_cpus=16, num_gpus=1, include_dashboard=False)
        yield [Runtime(cluster.address, forks) for cluster in clusters]
    finally:
        for cluster in clusters:
            cluster.shutdown()
        forks.close()
        os.environ.clear()
        os.environ.update(before)


def settings(work: Path, out: Path, steps: int, runtime: Runtime | None = None) -> list[str]:
    """The smallest job: 8 prompts, 4 completions each, two FSDP2 workers, two rollout replicas.

    runtime: without one, the run starts a Ray of its own, with one node.
    """
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    reward = ROOT / "tests_verl/support/toy.py"
    return [
        *("trainer.device=cpu", 'trainer.logger=["console","file"]'),
        *("trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=-1"),
        *("trainer.total_epochs=100", f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={out}/save"),
        *(f"data.train_files={work}/train.parquet", f"data.val_files={work}/test.parquet", "data.train_batch_size=8"),
        *("data.max_prompt_length=16", "data.max_response_length=8", "data.dataloader_num_workers=0"),
        *("data.shuffle=False", "algorithm.adv_estimator=grpo", f"actor_rollout_ref.model.path={work}/model"),
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        *("actor_rollout_ref.model.use_remove_padding=False",),
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        *(f"{actor}.strategy=fsdp2", f"{actor}.ppo_mini_batch_size=8", f"{actor}.use_dynamic_bsz=True"),
        *(f"{actor}.use_torch_compile=False", f"{actor}.fsdp_config.use_torch_compile=False"),
        f"+{actor}.fsdp_config.mixed_precision={{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}}",
        *(f"{actor}.optim.lr=1e-3", f"{actor}.ppo_max_token_len_per_gpu=2048"),
        *(f"{rollout}.name=hf_cpu", f"{rollout}.n=4", f"{rollout}.tensor_model_parallel_size=1"),
        *(f"{rollout}.log_prob_use_dynamic_bsz=True", f"{rollout}.agent.num_workers=1", f"{rollout}.dtype=float32"),
        *(f"{rollout}.log_prob_max_token_len_per_gpu=2048", f"{rollout}.calculate_log_probs=True"),
        *("reward.num_workers=1", f"reward.custom_reward_function.path={reward}"),
        *("reward.custom_reward_function.name=compute_score",),
        *(runtime.settings(out) if runtime else (*OWN_RAY, *ONE_NODE)),
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=2",
    ]


def environment(out: Path) -> dict[str, str]:
    own = {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "VERL_USE_EXTERNAL_MODULES": "tests_verl.support.plugin",
        "VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # Ray would have its workers wait for everybody else
        "HYDRA_FULL_ERROR": "1",
    }
    return {**os.environ, **own}


@dataclass(frozen=True)
class Finished:
    """code: the exit status. text: everything printed. rows: the logged metrics by verl's step, from 1."""

    code: int
    text: str
    rows: Mapping[int, Mapping[str, float]]

    def series(self, name: str) -> list[float]:
        """A metric of every step."""
        return [self.rows[step][name] for step in sorted(self.rows)]


def rows(out: Path) -> dict[int, dict[str, float]]:
    file = out / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {line["step"]: line["data"] for line in lines}


def start(module: str, arguments: Sequence[str], out: Path, runtime: Runtime | None = None) -> subprocess.Popen:
    """Start `python -m module arguments`, from the command line or, with a shared runtime, as a fork."""
    (out / "dump").mkdir(parents=True, exist_ok=True)
    python, own = [sys.executable], {"AEPO_TEST_DUMP": str(out / "dump")}
    if runtime:
        python, own = runtime.forks.executable.split(), {**own, SOCKET: str(runtime.forks.path)}
    return subprocess.Popen(
        [*python, "-m", module, *arguments],
        cwd=out,
        env={**environment(out), **own},
        stdout=(out / "log.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, out: Path, seconds: float = 900) -> Finished:
    """Wait; a run that takes longer is ended with all that it started."""
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return Finished(code, (out / "log.txt").read_text(), rows(out))


def run(module: str, arguments: Sequence[str], out: Path, runtime: Runtime | None = None) -> Finished:
    return finish(start(module, arguments, out, runtime), out)
