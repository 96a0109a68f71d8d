#!/usr/bin/env bash
# NOT RUN. GRPO beside it, with everything else the same.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen3-4B 8 8192 aepo.method=grpo "$@"
