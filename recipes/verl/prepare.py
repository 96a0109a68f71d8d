"""Problems as verl wants them: `python recipes/verl/prepare.py SOURCE FOLDER` makes train.parquet and test.parquet.

SOURCE is a file or a data set of the hub, as `task.train` of a recipe; FOLDER is what the scripts call DATA. Prompts
and the rows kept for evaluation are those of recipes/dapo17k. Needs `pip install 'aepo[train,data]'`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aepo.tasks.data import Data
from aepo.tasks.rows import load_rows
from aepo.tasks.styles import render

STYLE, HELD_OUT = "think", 256


def verl_row(number: int, text: str, answer: str) -> dict[str, Any]:
    """One problem in verl's columns."""
    turns = [{"role": role, "content": content} for role, content in render(STYLE, text).messages]
    truth = {"style": "rule", "ground_truth": answer}
    return {"data_source": "aepo", "prompt": turns, "reward_model": truth, "extra_info": {"index": number}}


def write(file: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Their number."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(rows))
    pyarrow.parquet.write_table(table, file)
    return int(table.num_rows)


def main(source: str, folder: str) -> None:
    """Both files."""
    kept = {problem.id for problem in Data(train=source, style=STYLE, held_out=HELD_OUT).eval_problems(HELD_OUT)}
    rows = list(enumerate(load_rows(source)))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, wanted in (("train", False), ("test", True)):
        chosen = (verl_row(number, row.text, row.answer) for number, row in rows if (row.id in kept) is wanted)
        print(f"{folder}/{name}.parquet: {write(Path(folder) / f'{name}.parquet', chosen)} problems")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
