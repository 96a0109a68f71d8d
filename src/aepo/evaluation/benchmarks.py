"""This module lists the benchmarks by name and reads their rows from files or from the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aepo.errors import InvalidValue, UnknownName
from aepo.tasks.code import code_record
from aepo.tasks.rows import FILE_TYPES, Row, load_rows


@dataclass(frozen=True)
class Benchmark:
    """`Benchmark` describes one benchmark and where its rows are."""

    title: str
    """The name as papers write it."""
    hub: str
    """The data set on the hub, `name[@config]:split`."""
    file: str
    """The name of its file in a folder of benchmark files."""
    code: bool = False
    """Whether the answers are programs, and the rows hold tests."""
    ids: range | None = None
    """The ids of the rows that are evaluated, of a file that has other rows too; None for all of them."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "aime24": Benchmark("AIME24", "HuggingFaceH4/aime_2024:train", "aime24.jsonl"),
    "aime25": Benchmark("AIME25", "math-ai/aime25:test", "aime25.jsonl"),
    "amc23": Benchmark("AMC23", "math-ai/amc23:test", "amc23.jsonl"),
    "math500": Benchmark("MATH500", "HuggingFaceH4/MATH-500:test", "math500.jsonl"),
    "gsm8k": Benchmark("GSM8K", "openai/gsm8k@main:test", "gsm8k.jsonl"),
    "minerva": Benchmark("Minerva", "math-ai/minervamath:test", "minerva_math.jsonl"),
    "olympiadbench": Benchmark(
        "OlympiadBench", "Hothan/OlympiadBench@OE_TO_maths_en_COMP:train", "olympiadbench.jsonl"
    ),
    "college_math": Benchmark("College Math", "di-zhang-fdu/College_Math_Test:test", "college_math.jsonl"),
    "humaneval": Benchmark("HumanEval", "openai/openai_humaneval:test", "HumanEval.jsonl", code=True),
    # The authors' split: 1-10 for prompts, 11-510 for evaluation, 511-974 for training.
    "mbpp": Benchmark("MBPP", "google-research-datasets/mbpp:test", "mbpp.jsonl", code=True, ids=range(11, 511)),
}
"""The benchmarks by their keys."""


@dataclass(frozen=True)
class BenchmarkRows:
    """`BenchmarkRows` holds the rows of one benchmark or file."""

    name: str
    """The key of the benchmark, or the name of the file without its suffix."""
    source: str
    """The file or the data set that the rows were read from."""
    rows: tuple[Row, ...]
    """The problems with their answers."""
    code: bool = False
    """Whether the answers are programs."""


def find(names: tuple[str, ...], data: Path | None, code: bool = False) -> list[BenchmarkRows]:
    """Return the rows of each benchmark or file.

    Args:
        names: Benchmarks by name, or paths of files. Without names, `data` is one file, and its rows are returned.
        data: A folder that holds the benchmarks' files, or one file. None reads the benchmarks from the hub.
        code: Whether the rows of files hold tests of programs.

    Raises:
        InvalidValue: A name is unknown or is given twice, or the data does not exist, cannot be read or is empty.
    """
    folder = data is None or data.is_dir()
    if not names and folder:
        reason = "no --data given" if data is None else _contents(data)
        raise InvalidValue("--benchmark", "", f"a list of {', '.join(BENCHMARKS)}, or files ({reason})")
    if not names:
        return [_file(str(data), code)]
    known = [None if Path(name).suffix in FILE_TYPES else _known(name) for name in names]
    if not folder and len(names) > 1:
        raise InvalidValue("--data", str(data), f"a folder with the files of {', '.join(names)}")
    found = [
        _file(name, code) if key is None else _benchmark(key, data) for name, key in zip(names, known, strict=True)
    ]
    keys = [item.name for item in found]
    for name in keys:
        if keys.count(name) > 1:
            raise InvalidValue("--benchmark", name, "named once")
    return found


def _known(name: str) -> str:
    """Return the key of a benchmark whose name is in any usual spelling: MATH-500, minerva_math, CollegeMath."""
    plain = _plain(name)
    for key, benchmark in BENCHMARKS.items():
        if plain in {_plain(key), _plain(benchmark.title), _plain(Path(benchmark.file).stem)}:
            return key
    raise UnknownName("--benchmark", name, BENCHMARKS, f", or a file ({', '.join(FILE_TYPES)})")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _file(source: str, code: bool) -> BenchmarkRows:
    return BenchmarkRows(Path(source).stem, source, _load(source, "--data", code), code)


def _load(source: str, where: str, code: bool, ids: range | None = None) -> tuple[Row, ...]:
    rows = load_rows(source, where=where, adapt=code_record) if code else load_rows(source, where=where)
    kept = [row for row in rows if ids is None or (row.id.isdigit() and int(row.id) in ids)]
    if not kept:
        raise InvalidValue(where, source, f"a source with rows whose ids are {ids}")
    return tuple(kept)


def _benchmark(key: str, data: Path | None) -> BenchmarkRows:
    benchmark = BENCHMARKS[key]
    if data is not None:
        path = data / benchmark.file if data.is_dir() else data
        if not path.is_file():
            wanted = f"a file or folder with {benchmark.file} for {benchmark.title} ({_contents(data)})"
            raise InvalidValue("--data", str(data), wanted)
        return BenchmarkRows(key, str(path), _load(str(path), "--data", benchmark.code, benchmark.ids), benchmark.code)
    try:
        return BenchmarkRows(
            key, benchmark.hub, _load(benchmark.hub, key, benchmark.code, benchmark.ids), benchmark.code
        )
    except InvalidValue as error:
        wanted = f"a data set that can be reached, or given as a file: --data FOLDER with {benchmark.file}"
        raise InvalidValue(f"--benchmark {key}", benchmark.hub, f"{wanted} ({error})") from None


def _contents(data: Path) -> str:
    if not data.is_dir():
        return "it does not exist"
    files = sorted(path.name for path in data.iterdir() if path.suffix in FILE_TYPES)
    return f"it holds {', '.join(files)}" if files else "it holds no files of data"
