#!/usr/bin/env bash
# NOT RUN. The entropy-shaped advantage that v1 compares with.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen2.5-Math-7B 5 2048 aepo.method=entropy-adv aepo.control.alpha=0.4 aepo.control.kappa=2.0 "$@"
