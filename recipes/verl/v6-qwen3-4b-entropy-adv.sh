#!/usr/bin/env bash
# NOT RUN. The entropy-shaped advantage that v6 compares with.
source "$(dirname "$0")/common.bash"
train Qwen/Qwen3-4B 8 8192 aepo.method=entropy-adv aepo.control.alpha=0.4 aepo.control.kappa=2.0 "$@"
