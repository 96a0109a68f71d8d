"""The core needs torch alone, and the smallest example runs on it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = (
    *("types", "entropy.statistics", "loss.advantages", "loss.surrogates", "control.laws", "control", "algorithm"),
    *("methods", "convert", "engines.stages", "engines.collate", "conformance", "analysis.tracking", "planning.cost"),
)
HEAVY = ("transformers", "tokenizers", "safetensors", "numpy", "rich", "tyro", "tomli_w", "matplotlib", "datasets")


def test_the_core_imports_where_only_torch_is_installed():
    # torch itself tries numpy and goes on without it.
    block = f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}))"
    imports = "; ".join(f"import aepo.{name}" for name in CORE)
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"{block}; {imports}"], check=True, timeout=120)


def test_the_command_line_says_what_it_needs():
    script = "import sys; sys.modules['tyro'] = None; from aepo.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr == "aepo: tyro is not installed; the command line needs: pip install 'aepo[train]'\n"


def test_the_minimal_example_holds_its_target():
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "minimal.py")], capture_output=True, text=True, check=True, timeout=600
    )
    entropy = float(result.stdout.strip().splitlines()[-1].split("entropy ")[1].split()[0])
    assert abs(entropy - 1.0) < 0.1, result.stdout
