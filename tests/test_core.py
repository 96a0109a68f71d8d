"""The core needs torch alone, and the smallest example and the tutorial run on it."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import aepo

ROOT = Path(__file__).parents[1]
CORE = (
    *("types", "entropy.statistics", "loss.advantages", "loss.surrogates", "control.laws", "control", "algorithm"),
    *("methods", "convert", "engines.stages", "engines.collate", "conformance", "analysis.tracking", "planning.cost"),
)
# The public names that the loop, the models and the plots stand behind.
NEED_MORE = {"train", "TrainedRun", "Callback"}
HEAVY = ("transformers", "tokenizers", "safetensors", "numpy", "rich", "tyro", "tomli_w", "matplotlib", "datasets")


def test_the_core_imports_where_only_torch_is_installed():
    # torch itself tries numpy and goes on without it.
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))"
    imports = "; ".join(f"import aepo.{name}" for name in CORE)
    public = "; ".join(f"aepo.{name}" for name in aepo.__all__ if name not in NEED_MORE)
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"{block}; {imports}; {public}"], check=True, timeout=120)


def test_the_command_line_says_what_it_needs():
    script = "import sys; sys.modules['tyro'] = None; from aepo.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr == "aepo: tyro is not installed; the command line needs: pip install 'aepo[train]'\n"


def test_the_minimal_example_holds_its_target():
    script = [sys.executable, str(ROOT / "examples" / "minimal.py")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(script, capture_output=True, text=True, check=True, timeout=600, env=one_thread)
    entropy = float(result.stdout.strip().splitlines()[-1].split("entropy ")[1].split()[0])
    assert abs(entropy - 1.0) < 0.1, result.stdout


def test_what_the_tutorial_says_happens(tmp_path):
    script = [sys.executable, "-W", "error", str(ROOT / "examples" / "tutorial.py")]
    result = subprocess.run(script, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = result.stdout

    def numbers(line: str) -> list[float]:
        """The numbers of the first line that begins like this, signs and decimals included."""
        found = next(text for text in shown.splitlines() if text.startswith(line))
        return [float(number) for number in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?", found.removeprefix(line))]

    # 1. The entropy, exact and sampled.
    uniform, *_, log = numbers("uniform policy")
    (exact,) = numbers("our policy")
    assert uniform == log == 3.912 and 0 < exact < uniform
    assert abs(numbers("sampled estimate at temperature 1.0:")[0] - exact) < 0.03
    assert numbers("sampled estimate at temperature 1.5:")[0] > exact + 0.3
    # 2. GRPO loses it.
    first, last, _ = numbers("GRPO: entropy")
    assert abs(first - exact) < 0.03 and 0.2 < last < 0.35
    # 3. A law is odd and limited; AEPO's command goes down, up, and near zero.
    assert [numbers(f"error {error} nats:") for error in ("+0.20", "+0.05", "-0.05")] == [[1.0], [0.52], [-0.52]]
    steps = {step: numbers(f"step {step:3d}:") for step in (0, 50, 100, 399)}
    entropy, command, reward, alone = steps[50]
    assert entropy < alone - 0.1 and command == -1 and steps[0][1] == 0
    entropy, command, *_ = steps[100]
    assert entropy < 1 and command == 1
    entropy, command, reward, alone = steps[399]
    assert abs(entropy - 1) < 0.02 and abs(command) < 0.3 and reward > 0.98 and alone == last
    # 4. and 5. PI holds the target, a proportional law leaves an error, the switch swings.
    held, target, saturated = numbers("AEPO with PI: entropy")
    assert abs(held - target) < 0.01 and target == 1 and saturated == 0
    pi, proportional, switch = (numbers(f"{law:12s}:") for law in ("PI", "Proportional", "Switch"))
    assert pi[0] == held and proportional[0] < 0.99 and abs(switch[0] - 1) < 0.02
    assert switch[1] > 3 * pi[1]
    # 6. The schedule is followed.
    for step in (200, 300, 399):
        aim, entropy = numbers(f"schedule, step {step}:")
        assert abs(aim - entropy) < 0.03
    assert (tmp_path / "tutorial.png").exists() == (find_spec("matplotlib") is not None)
    # 8. Settings and refusals.
    assert "this one: linear(1x,0.5x,200), SelfTuning(gain=0.7" in shown
    assert "refused: law.gain: got -1.0; must be a share in (0, 1]" in shown
