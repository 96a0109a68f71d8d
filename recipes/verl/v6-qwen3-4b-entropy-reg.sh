#!/usr/bin/env bash
# NOT RUN. The entropy bonus that v6 compares with.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen3-4B 8 8192 aepo.method=entropy-reg aepo.control.coefficient=0.015 "$@"
