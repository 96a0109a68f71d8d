#!/usr/bin/env bash
# NOT RUN. AEPO, v1 of the paper, one node of 8 GPUs: 60 positives whichever way.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen2.5-Math-7B 5 2048 aepo.method=aepo-v1 aepo.target=0.75 "$@"
