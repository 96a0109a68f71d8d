"""Runs tests/entropy/triton_cases.py: on the GPU where there is one, else in Triton's interpreter on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.gpu
def test_the_triton_kernels():
    """In a process of their own, because Triton must not have been imported before it is told to interpret."""
    pytest.importorskip("triton", reason="Triton is not installed")
    where = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(CASES)]
    ran = subprocess.run(command, env={**os.environ, **where}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
