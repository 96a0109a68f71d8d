"""Rows of problems from files (JSONL, Parquet, CSV) and Hugging Face data sets, with their columns recognised.

A column is found by the name that the user gives, or else by the usual names:

    prompt     prompt, problem, question                        text, or a list of chat messages
    answer     answer, final_answer, ground_truth, reward_model.ground_truth; else what the solution boxes last
    solution   solution, optional
    images     image, images, optional                          a file, its bytes, an image of PIL, or a list of these
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue
from aepo.grading.text import last_boxed
from aepo.tasks.images import COLUMNS, MARK, Image, images_of, without_images
from aepo.tasks.messages import Message, chat_turns
from aepo.tasks.messages import short as _short

PROMPT_COLUMNS = ("prompt", "problem", "question")
ANSWER_COLUMNS = ("answer", "final_answer", "ground_truth", "reward_model.ground_truth")
SOLUTION_COLUMN = "solution"
# Columns in which TRL, EasyR1 and verl keep what is neither text nor an image.
MEDIA_COLUMNS = ("video", "videos", "audio", "audios")
# The column in which TRL keeps the tools of a row, and that of the row's own arguments of the chat template.
TOOLS_COLUMN, TEMPLATE_COLUMN = "tools", "chat_template_kwargs"
FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv")

Placed = tuple[str, Mapping[str, Any]]
"""A record with its place in the file, such as "line 3"; the place is empty where rows have no lines."""


@dataclass(frozen=True)
class Columns:
    """`Columns` are the names of the columns; None takes the first usual one that is there.

    A dot reaches into a nested table.
    """

    prompt: str | None = None
    """Column of the prompt."""
    answer: str | None = None
    """Column of the known answer."""
    solution: str | None = None
    """Column of a worked solution."""


@dataclass(frozen=True)
class Row:
    """`Row` is one problem of a source."""

    id: str
    """The source's own id, or the number of the row, from 1."""
    text: str
    """The prompt; for chat messages, their contents."""
    answer: str
    """The known answer."""
    messages: tuple[Message, ...] = ()
    """Chat turns (role, content); empty for a prompt that is plain text."""
    solution: str | None = None
    """A worked solution, or None."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The row's own arguments of the chat template, from its column `chat_template_kwargs`."""
    where: str = field(default="", compare=False)
    """The file with the line and the number of the row, for messages."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Everything that the source says of the problem, for reward functions."""
    images: tuple[Image, ...] = ()
    """The images, in the order of the marks `<image>` in the prompt."""

    @property
    def shown(self) -> tuple[str, tuple[Image, ...]]:
        """Return what the model is shown of the row: the text and the images."""
        return self.text, self.images


Adapt = Callable[[Mapping[str, Any], str], Mapping[str, Any]]
"""A function that gives a record the usual columns; it gets the record and the record's name for messages."""


def load_rows(
    source: str, columns: Columns = Columns(), where: str = "data", adapt: Adapt = lambda record, where: record
) -> list[Row]:
    """Return all rows of a file or of a data set.

    Args:
        source: A file, or a data set written `name`, `name:split` or `name@config:split`.
        columns: The names of the columns.
        where: The setting that named the source, for messages.
        adapt: What is done to each record before its columns are read.

    Raises:
        InvalidValue: A row cannot be used; the message names `where` and the row.
    """
    path = Path(source)
    is_file = path.suffix in FILE_TYPES or path.exists()
    records = _records(path, where) if is_file else _hub(source, where)
    rows = []
    for number, (place, record) in enumerate(records, 1):
        name = ", ".join(filter(None, (f"{where} {source}", place, f"row {number}")))
        rows.append(_row(adapt(record, name), number, columns, name, path.parent if is_file else None))
    if not rows:
        raise InvalidValue(where, source, "a source with at least one row")
    return rows


# --- files --------------------------------------------------------------------------------------------------


def _records(path: Path, where: str) -> Iterator[Placed]:
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".csv": _csv}
    if not path.is_file():
        raise InvalidValue(where, str(path), "a file that exists")
    if path.suffix not in readers:
        raise InvalidValue(where, str(path), f"a file that ends in {', '.join(FILE_TYPES)}")
    try:
        yield from readers[path.suffix](path, where)
    except OSError as error:
        raise InvalidValue(where, str(path), f"a readable file ({error})") from None
    except UnicodeDecodeError as error:
        raise InvalidValue(where, str(path), f"UTF-8 text ({error.reason} at byte {error.start})") from None


def _jsonl(path: Path, where: str) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _object(line, f"{where} {path}, line {number}")


def _json(path: Path, where: str) -> Iterator[Placed]:
    """Yield the objects of a list. A file that holds JSON lines in spite of its name is read as such."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        yield from _jsonl(path, where)
        return
    for number, record in enumerate(parsed if isinstance(parsed, list) else [parsed], 1):
        if not isinstance(record, dict):
            raise InvalidValue(f"{where} {path}, item {number}", record, "a JSON object")
        yield "", record


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidValue(where, _short(line), f"one JSON object ({error.msg}; is the file cut off?)") from None
    if not isinstance(record, dict):
        raise InvalidValue(where, _short(line), "one JSON object")
    return record


def _parquet(path: Path, where: str) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise InvalidValue(where, str(path), f"a whole Parquet file ({_short(str(error))})") from None
    yield from (("", record) for record in table.to_pylist())


def _csv(path: Path, where: str) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    got = f"line {reader.line_num}"
                    raise InvalidValue(f"{where} {path}", got, "a row with as many cells as the header")
                yield f"line {reader.line_num}", record
        except csv.Error as error:
            raise InvalidValue(where, str(path), f"valid CSV ({error}, line {reader.line_num})") from None


def _hub(source: str, where: str) -> Iterator[Placed]:
    try:
        import datasets
    except ImportError:
        raise InvalidValue(where, source, "a file, or a data set's name with `pip install 'aepo[data]'`") from None
    name, _, split = source.partition(":")
    path, _, config = name.partition("@")
    try:
        loaded = datasets.load_dataset(path, config or None, split=split or "train")
    except Exception as error:
        reason = _short(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
        wanted = f"a file that exists, or a data set name[@config][:split] that can be reached ({reason})"
        raise InvalidValue(where, source, wanted) from None
    yield from (("", record) for record in _undecoded(loaded))


def _undecoded(loaded: Any) -> Any:
    """Return a data set whose images are bytes or paths, which take less memory than decoded ones."""
    import datasets

    for name in COLUMNS:
        kind: Any = (loaded.features or {}).get(name)
        plain = datasets.Image(decode=False)
        if isinstance(kind, datasets.Image):
            loaded = loaded.cast_column(name, plain)
        elif isinstance(getattr(kind, "feature", None), datasets.Image):
            loaded = loaded.cast_column(name, type(kind)(plain))
    return loaded


# --- rows ---------------------------------------------------------------------------------------------------


def _row(record: Mapping[str, Any], number: int, columns: Columns, where: str, folder: Path | None = None) -> Row:
    _check_media(record, where)
    prompt = _column(record, columns.prompt, PROMPT_COLUMNS, f"{where}, prompt")
    messages, parts = chat_turns(prompt, f"{where}, prompt")
    images = images_of(record, parts, where, folder)
    if images:
        messages, prompt = _marked(messages, prompt, len(images), f"{where}, prompt")
        record = without_images(record, images)
    text = "\n".join(content for _, content in messages) if messages else prompt
    if not text.replace(MARK, "").strip():
        raise InvalidValue(f"{where}, prompt", text, "text that is not empty")
    _check_encodable(text, f"{where}, prompt")
    solution = record.get(columns.solution or SOLUTION_COLUMN)
    return Row(
        id=str(_identity(record, number)),
        text=text,
        answer=_answer(record, columns, solution, where),
        messages=messages,
        solution=solution if isinstance(solution, str) else None,
        template_kwargs=_template_kwargs(record, where),
        where=where,
        columns=record,
        images=images,
    )


def _marked(messages: tuple[Message, ...], prompt: Any, images: int, where: str) -> tuple[tuple[Message, ...], Any]:
    """Return the turns, or the plain prompt, with a mark for each image.

    Without any mark, the images stand at the start: of the first turn of the user, or of the prompt.
    """
    marks = sum(content.count(MARK) for _, content in messages) if messages else prompt.count(MARK)
    if marks == images:
        return messages, prompt
    if marks:
        raise InvalidValue(where, f"{marks} marks {MARK} and {images} images", f"as many marks as images, or no {MARK}")
    if not messages:
        return messages, MARK * images + prompt
    first = next((number for number, (role, _) in enumerate(messages) if role == "user"), len(messages) - 1)
    role, content = messages[first]
    return (*messages[:first], (role, MARK * images + content), *messages[first + 1 :]), prompt


def _template_kwargs(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the row's own arguments of the chat template. Parquet fills what a row does not have with null."""
    given = record.get(TEMPLATE_COLUMN)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidValue(f"{where}, {TEMPLATE_COLUMN}", given, "a table such as {enable_thinking: false}")
    return {name: value for name, value in given.items() if value is not None}


def _identity(record: Mapping[str, Any], number: int) -> Any:
    found = (record[key] for key in ("id", "unique_id", "idx", "index") if isinstance(record.get(key), int | str))
    return next(found, number)


def _column(record: Mapping[str, Any], given: str | None, usual: Sequence[str], where: str) -> Any:
    for name in (given,) if given else usual:
        value = _reach(record, name)
        if value is not None:
            return value
    wanted = f"the column {given}" if given else f"one of the columns {', '.join(usual)}"
    raise InvalidValue(where, f"columns {', '.join(map(str, record))}", wanted)


def _reach(record: Any, dotted: str) -> Any:
    """Return record[a][b] for "a.b", or None where there is nothing."""
    if isinstance(record, Mapping) and dotted in record:
        return record[dotted]
    for part in dotted.split("."):
        record = record.get(part) if isinstance(record, Mapping) else None
    return record


def _check_media(record: Mapping[str, Any], where: str) -> None:
    """Refuse a row that brings more than text and images; without it the problem would be another one."""
    for name in MEDIA_COLUMNS:
        value = record.get(name)
        if value is not None and (not hasattr(value, "__len__") or len(value)):
            wanted = "a row of text and images: audio and video are not supported yet"
            raise InvalidValue(where, f"a value in the column {name}", wanted)
    if record.get(TOOLS_COLUMN):
        wanted = "a row without tools: calls of tools are not supported yet"
        raise InvalidValue(where, f"a value in the column {TOOLS_COLUMN}", wanted)


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        got = f"half of a surrogate pair, {text[error.start]!a}, at character {error.start}"
        raise InvalidValue(where, got, "text that can be written as UTF-8") from None


def _answer(record: Mapping[str, Any], columns: Columns, solution: Any, where: str) -> str:
    try:
        value = _column(record, columns.answer, ANSWER_COLUMNS, f"{where}, answer")
    except InvalidValue:
        boxed = last_boxed(solution) if isinstance(solution, str) else None
        if columns.answer or boxed is None:
            raise
        return boxed
    return answer_text(value, f"{where}, answer")


def answer_text(value: Any, where: str) -> str:
    """Return an answer as text: 27.0 as 27, a list of one as its element, GSM8K's "... #### 18" as 18.

    Raises:
        InvalidValue: The value is neither text nor a number.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidValue(where, _short(str(value)), "text, a number, or a list of one")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).rpartition("\n#### ")[2].strip()
    if not text:
        raise InvalidValue(where, value, "an answer that is not empty")
    return text
