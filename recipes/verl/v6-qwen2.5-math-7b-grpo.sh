#!/usr/bin/env bash
# NOT RUN. GRPO beside it, with everything else the same.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen2.5-Math-7B 8 8192 aepo.method=grpo "${LONGER[@]}" "$@"
