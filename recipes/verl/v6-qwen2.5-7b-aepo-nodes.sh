#!/usr/bin/env bash
# NOT RUN. AEPO, v6, on NODES nodes of 8 GPUs (4 unless set). Ray must be up: `ray start --head` on the first node,
# `ray start --address=HEAD:6379` on the others, with this package installed on all of them; then this on the head.
NODES=${NODES:-4}
source "$(dirname "$0")/common.bash"
train Qwen/Qwen2.5-7B 8 8192 aepo.method=aepo-v6 aepo.target=0.5 +ray_kwargs.ray_init.address=auto \
    ray_kwargs.ray_init.num_cpus=null "$@"
