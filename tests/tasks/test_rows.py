import json

import pyarrow
import pyarrow.parquet
import pytest

from aepo.errors import InvalidValue
from aepo.tasks.rows import Columns, load_rows


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def one(tmp_path, **record):
    (row,) = load_rows(write(tmp_path / "rows.jsonl", [record]))
    return row


@pytest.mark.parametrize("prompt", ["prompt", "problem", "question"])
@pytest.mark.parametrize("answer", ["answer", "final_answer", "ground_truth"])
def test_the_usual_columns_are_recognised(tmp_path, prompt, answer):
    row = one(tmp_path, **{prompt: "1 + 1 =", answer: "2"})
    assert (row.text, row.answer, row.id) == ("1 + 1 =", "2", "1")


def test_given_columns_win_and_dots_reach_into_tables(tmp_path):
    record = {"problem": "no", "q": "yes", "answer": "no", "reward_model": {"ground_truth": "7", "style": "rule"}}
    file = write(tmp_path / "rows.jsonl", [record])
    (row,) = load_rows(file, Columns(prompt="q", answer="reward_model.ground_truth"))
    assert (row.text, row.answer) == ("yes", "7")


def test_verls_rows_with_messages(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    row = one(tmp_path, prompt=turns, reward_model={"ground_truth": "2"})
    assert row.messages == (("system", "Be brief."), ("user", "1 + 1?")) and row.answer == "2"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("204", "204"),
        (27.0, "27"),
        (0.5, "0.5"),
        (3, "3"),
        (["2"], "2"),
        ([27.0], "27"),
        ("steps\n#### 1,234", "1,234"),
    ],
)
def test_answers_of_every_kind_become_text(tmp_path, value, text):
    assert one(tmp_path, problem="p", answer=value).answer == text


def test_a_boxed_solution_is_the_answer_where_no_column_has_one(tmp_path):
    row = one(tmp_path, problem="p", solution=r"so \boxed{1}, no: \boxed{\frac{1}{2}}")
    assert row.answer == r"\frac{1}{2}" and row.solution.startswith("so")


def test_parquet_csv_and_a_json_list_give_the_same_rows(tmp_path):
    records = [{"problem": 'a, "b"', "answer": "1"}, {"problem": "c\nd", "answer": "2"}]
    write(tmp_path / "rows.jsonl", records)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(records))
    (tmp_path / "rows.csv").write_text('problem,answer\n"a, ""b""",1\n"c\nd",2\n')
    wanted = load_rows(str(tmp_path / "rows.jsonl"))
    for suffix in ("parquet", "json", "csv"):
        assert load_rows(str(tmp_path / f"rows.{suffix}")) == wanted


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"problem": "p"}\n', "row 1, answer: got 'columns problem'; must be one of the columns answer"),
        ("a.jsonl", b'{"answer": "1"}\n', "row 1, prompt: got 'columns answer'; must be one of the columns prompt"),
        ("a.jsonl", b'{"problem": " ", "answer": "1"}\n', "row 1, prompt: got ' '; must be text that is not empty"),
        ("a.jsonl", b'{"problem": "p", "answer": ""}\n', "row 1, answer: got ''; must be an answer that is not empty"),
        ("a.jsonl", b'{"problem": "p", "answer": [1, 2]}\n', "must be text, a number, or a list of one"),
        ("a.jsonl", b'{"problem": "p", "answer": "1"}\n{"problem": "q", "ans', "line 2: .*is the file cut off"),
        ("a.jsonl", b"[1]\n", "line 1: .* one JSON object"),
        ("a.jsonl", b"", "a source with at least one row"),
        ("a.jsonl", b"\xff\xfe", "UTF-8 text"),
        ("a.json", b"[1, 2]", "item 1: got 1; must be a JSON object"),
        ("a.csv", b"problem,answer\np\n", "as many cells as the header"),
        ("a.parquet", b"PAR1 and no more", "a whole Parquet file"),
        ("a.txt", b"text", "a file that ends in .jsonl"),
        ("a.jsonl", None, "a file that exists"),
        ("a.jsonl", b'{"prompt": [{"role": "user"}], "answer": "1"}\n', "messages with role and content"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_its_place(tmp_path, name, content, words):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidValue, match=words) as caught:
        load_rows(str(file))
    assert "\n" not in str(caught.value)


def test_a_data_set_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        InvalidValue, match="^data: got 'nobody/nothing:train'; must be a file that exists, or a data set"
    ):
        load_rows("nobody/nothing:train")


# --- chat messages and what is no text ----------------------------------------------------------------------


def from_record(tmp_path, record):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(record) + "\n")
    return load_rows(str(file))[0]


def test_a_content_of_text_parts_is_their_text(tmp_path):
    parts = [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1"}]
    row = from_record(
        tmp_path, {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": parts}], "answer": 2}
    )
    assert row.messages == (("system", "s"), ("user", "1 + 1"))


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([{"role": "user", "content": None}], "row 1, prompt, user: got None; must be a message whose content is text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "got '1 image parts and 0 images'; must be as many"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part of type image_url"),
        ([{"role": "user", "content": ["text"]}], "must be parts of text"),
        ([{"role": "user", "content": {"text": "x"}}], "must be a message whose content is text"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "I"}],
            "a last turn of the assistant, 'I'",
        ),
        ([{"role": 1, "content": "x"}], "a list of messages with role and content"),
        (["x"], "a list of messages with role and content"),
        ([], "got '[]'; must be text, or a list of messages"),
        ({"role": "user", "content": "x"}, "must be text, or a list of messages"),
        (7, "got '7'; must be text, or a list of messages"),
        ([{"role": "user", "content": " "}], "prompt, user: got ' '; must be a message whose content is text that is"),
        ([{"role": "user", "content": [{"type": "image", "text": ""}]}], "1 image parts and 0 images"),
        (
            [{"role": "user", "content": [{"type": "audio", "text": ""}]}],
            "got 'a part of type audio'; must be parts of",
        ),
        ([{"role": "user", "content": []}], "prompt, user: got ''"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "prompt, assistant: got 'a turn with tool_calls'; must be turns of text: calls of tools",
        ),
        ('[{"role": "user", "content": null}]', "prompt, user: got None"),
        ("[{'role': 'user', 'content': None}]", "prompt, user: got None"),
    ],
)
def test_messages_that_would_become_another_prompt_are_refused_by_row(tmp_path, turns, words):
    with pytest.raises(InvalidValue) as refused:
        from_record(tmp_path, {"prompt": turns, "answer": "1"})
    assert words in str(refused.value) and "row 1" in str(refused.value)


@pytest.mark.parametrize("column", ["video", "audios"])
def test_a_row_with_a_video_is_refused_and_an_empty_column_is_not(tmp_path, column):
    with pytest.raises(InvalidValue, match=f"row 1: got 'a value in the column {column}'.*audio and video"):
        from_record(tmp_path, {"prompt": "<image> How many?", "answer": "1", column: ["a.png"]})
    assert from_record(tmp_path, {"prompt": "How many?", "answer": "1", column: []}).text == "How many?"
    assert from_record(tmp_path, {"prompt": "How many?", "answer": "1", column: None}).text == "How many?"


def test_half_a_surrogate_pair_is_refused_by_row(tmp_path):
    with pytest.raises(InvalidValue, match="row 1, prompt: got .*surrogate"):
        from_record(tmp_path, {"prompt": "a \ud800 b", "answer": "1"})


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_changes_nothing(tmp_path, suffix):
    text = "prompt,answer\n1+1,2\n" if suffix == "csv" else '{"prompt": "1+1", "answer": "2"}\n'
    file = tmp_path / f"rows.{suffix}"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [row.text for row in load_rows(str(file))] == ["1+1"]


@pytest.mark.parametrize(
    ("spelled", "kept"),
    [
        ('[{"role": "user", "content": "1 + 1?"}]', False),
        (" [{'role': 'user', 'content': '1 + 1?'}]", False),
        ('[{"role": "user"', True),
        ("[{1, 2}] has which role?", True),
        ("Sort [3, 1, 2].", True),
    ],
)
def test_text_that_spells_messages_is_messages_and_no_other_text_is(tmp_path, spelled, kept):
    row = from_record(tmp_path, {"prompt": spelled, "answer": "2"})
    assert (row.text, row.messages) == ((spelled, ()) if kept else ("1 + 1?", (("user", "1 + 1?"),)))


def test_an_empty_system_turn_stays_and_tools_are_refused(tmp_path):
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "x", "tool_calls": []}]
    row = from_record(
        tmp_path, {"prompt": turns, "answer": "1", "tools": [], "chat_template_kwargs": {"a": 1, "b": None}}
    )
    assert row.messages == (("system", ""), ("user", "x")) and row.template_kwargs == {"a": 1}
    with pytest.raises(InvalidValue, match=r"line 1, row 1: got 'a value in the column tools'"):
        from_record(tmp_path, {"prompt": turns, "answer": "1", "tools": [{"name": "f"}]})
    with pytest.raises(InvalidValue, match=r"line 1, row 1, chat_template_kwargs: got 'x'; must be a table"):
        from_record(tmp_path, {"prompt": turns, "answer": "1", "chat_template_kwargs": "x"})


def test_a_refusal_names_the_line_of_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "answer": "1"}\n\n{"problem": "", "answer": "1"}\n')
    with pytest.raises(InvalidValue, match=r"a\.jsonl, line 3, row 2, prompt"):
        load_rows(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.csv").write_text("problem,answer\np,1\n,1\n")
    with pytest.raises(InvalidValue, match=r"a\.csv, line 3, row 2, prompt"):
        load_rows(str(tmp_path / "a.csv"))
    (tmp_path / "a.json").write_text('[{"problem": "p", "answer": "1"}, {"problem": "", "answer": "1"}]')
    with pytest.raises(InvalidValue, match=r"a\.json, row 2, prompt"):
        load_rows(str(tmp_path / "a.json"))
