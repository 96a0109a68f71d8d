# Sourced by the scripts beside it. NOT RUN: nobody has run these on GPUs yet. Verified: that every script composes to
# a configuration of verl 0.9.1 that the launcher accepts (tests_verl/test_settings.py).
#
# Settings of the papers (v1, v6: arXiv 2510.08141 of October and December 2025; code: the authors' repository at
# b353a05), the same as in recipes/dapo17k/common.toml; "ours" marks what neither states.
#
# verl 0.9.1 expects vLLM 0.24.0 with torch 2.11.0 and transformers 5.9.0, and flash-attn 2.8.3 for
# use_remove_padding: pip install 'aepo[verl]' 'verl[vllm,fsdp]==0.9.1'. Before a long run, try one GPU for ten minutes:
# python -m aepo.integrations.verl.smoke --model Qwen/Qwen2.5-0.5B
set -euo pipefail

: "${DATA:?a folder with train.parquet and test.parquet, made by recipes/verl/prepare.py}"
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NODES=${NODES:-1}
GPUS=${GPUS:-8}
OUT=${OUT:-$PWD/runs/$(basename "$0" .sh)}
# Qwen2.5-Math has 4 096 positions; v6 asks for 1 024 of the prompt and 8 192 of the response (ours).
LONGER=(
    "+actor_rollout_ref.model.override_config.max_position_embeddings=9216"
    "+actor_rollout_ref.rollout.engine_kwargs.vllm.hf_overrides={max_position_embeddings:9216}"
)

# train MODEL GROUP_SIZE LONGEST_RESPONSE OVERRIDES...
train() {
    local model=$1 group=$2 longest=$3
    shift 3
    local actor=actor_rollout_ref.actor rollout=actor_rollout_ref.rollout
    exec python -m aepo.integrations.verl \
        data.train_files="$DATA/train.parquet" data.val_files="$DATA/test.parquet" \
        data.train_batch_size=512 data.max_prompt_length=1024 data.max_response_length="$longest" \
        data.filter_overlong_prompts=True \
        reward.custom_reward_function.path="$HERE/reward.py" reward.custom_reward_function.name=compute_score \
        actor_rollout_ref.model.path="$model" actor_rollout_ref.model.use_remove_padding=True \
        actor_rollout_ref.model.enable_gradient_checkpointing=True \
        $actor.strategy=fsdp2 $actor.optim.lr=1e-6 $actor.optim.weight_decay=0.0 $actor.ppo_mini_batch_size=128 \
        $actor.use_dynamic_bsz=True $actor.ppo_max_token_len_per_gpu=$(((1024 + longest) * 2)) \
        $rollout.name=vllm $rollout.n="$group" $rollout.temperature=1.0 $rollout.top_p=1.0 \
        $rollout.tensor_model_parallel_size=1 $rollout.gpu_memory_utilization=0.6 \
        $rollout.log_prob_use_dynamic_bsz=True $rollout.log_prob_max_token_len_per_gpu=$(((1024 + longest) * 4)) \
        trainer.nnodes="$NODES" trainer.n_gpus_per_node="$GPUS" trainer.default_local_dir="$OUT" \
        trainer.total_training_steps=200 trainer.total_epochs=100 trainer.save_freq=20 trainer.test_freq=20 \
        trainer.project_name=aepo trainer.experiment_name="$(basename "$0" .sh)" 'trainer.logger=["console","tensorboard"]' \
        "$@"
}
