#!/usr/bin/env bash
# NOT RUN. The entropy bonus that v1 compares with.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen2.5-Math-7B 5 2048 aepo.method=entropy-reg aepo.control.coefficient=0.03 "$@"
