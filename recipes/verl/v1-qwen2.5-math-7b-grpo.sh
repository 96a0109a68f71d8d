#!/usr/bin/env bash
# NOT RUN. GRPO beside it, with everything else the same.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen2.5-Math-7B 5 2048 aepo.method=grpo "$@"
