"""Rows with images: the formats of TRL and EasyR1, and what is refused."""

import io
import json
import sys
from dataclasses import replace

import pytest
from PIL import Image as Pillow

from aepo.errors import InvalidValue
from aepo.tasks import Data, Pictures
from aepo.tasks.images import Image
from aepo.tasks.rows import load_rows


def drawn(colour: str = "red", size=(12, 8)) -> Pillow.Image:
    return Pillow.new("RGB", size, colour)


def encoded(picture: Pillow.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(encoded(drawn(colour)))
    return tmp_path


def rows_of(folder, *records):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_rows(str(file))


RED, BLUE = (Image.of(drawn(colour), "here") for colour in ("red", "blue"))


# --- one image ----------------------------------------------------------------------------------------------


def test_an_image_is_the_same_in_every_form(folder):
    path, content = folder / "red.png", encoded(drawn("red"))
    forms = [
        drawn("red"),
        str(path),
        path,
        content,
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(path)},
    ]
    forms += [encoded(drawn("red"), "BMP"), drawn("red").convert("RGBA")]
    assert {Image.of(form, "here") for form in forms} == {RED}
    assert RED != BLUE and RED.size == (12, 8)
    assert all(Image.of(form, "here").load().getcolors() == [(96, (255, 0, 0))] for form in forms)


def test_equal_pixels_of_another_shape_are_another_image():
    assert Image.of(drawn(size=(8, 12)), "here") != RED


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"no image", "got '8 bytes'; must be an image that can be read"),
        ("none.png", "got 'none.png'; must be a file of an image that exists here"),
        ("https://example.org/a.png", "must be a file of an image that exists here (addresses are not loaded)"),
        ({"bytes": None, "path": None}, "got 'NoneType'; must be an image of PIL, a path, or a table"),
        (7, "got 'int'; must be an image of PIL"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(value, words):
    with pytest.raises(InvalidValue) as refused:
        Image.of(value, "row 1, image 1")
    assert words in str(refused.value) and str(refused.value).startswith("row 1, image 1")


def test_without_pillow_rows_with_images_and_the_task_are_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidValue, match=r"pip install 'aepo\[vision\]'"):
        Image.of(b"content", "row 1")
    with pytest.raises(
        InvalidValue, match=r"task: got 'pictures'; must be another one, or pip install 'aepo\[vision\]'"
    ):
        Pictures().check()


def test_a_file_that_changed_is_refused(folder):
    image = Image.of(folder / "red.png", "here")
    (folder / "red.png").write_bytes(encoded(drawn("blue")))
    with pytest.raises(InvalidValue, match="the pixels that it had when the data was read"):
        image.load()


# --- rows ---------------------------------------------------------------------------------------------------


def test_golden_rows_of_easyr1_have_marks_and_images(folder):
    [row] = rows_of(folder, {"problem": "<image>How many? <image>", "answer": "2", "images": ["red.png", "blue.png"]})
    assert row.text == "<image>How many? <image>" and row.messages == ()
    assert row.images == (RED, BLUE)
    assert row.columns == {"problem": "<image>How many? <image>", "answer": "2", "images": [RED, BLUE]}


@pytest.mark.parametrize("column", ["image", "images"])
def test_golden_rows_of_trl_show_their_images_first(folder, column):
    value = "red.png" if column == "image" else ["red.png"]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "How many?"}]
    chat, plain = rows_of(
        folder,
        {"prompt": turns, "answer": "2", column: value},
        {"prompt": "How many?", "answer": "2", column: value},
    )
    assert chat.messages == (("system", "s"), ("user", "<image>How many?")) and chat.images == (RED,)
    assert plain.text == "<image>How many?" and plain.images == (RED,)


def test_parts_of_a_message_are_the_places_of_the_images(folder):
    def row(*parts, **columns):
        turns = [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]
        return rows_of(folder, {"prompt": turns, "answer": "2", **columns})[0]

    place, red = {"type": "image", "text": None}, {"type": "image", "image": "red.png"}
    words = {"type": "text", "text": "and "}
    assert row(place, words, place, images=["red.png", "blue.png"]).images == (RED, BLUE)
    assert row(red, words, place, image="blue.png").images == (RED, BLUE)
    assert row(red, words, place, image="blue.png").messages == (("user", "<image>and <image>?"),)
    assert row(red).columns["prompt"][0]["content"][0] == {"type": "image"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"problem": "<image> <image>?", "images": ["red.png"]}, "got '2 marks <image> and 1 images'; must be as many"),
        ({"problem": "<image>", "images": ["red.png"]}, "text that is not empty"),
        (
            {"problem": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]},
            "got '1 image parts and 0 images'",
        ),
        (
            {
                "problem": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image>?"}]}],
                "image": "red.png",
            },
            "got '2 marks <image> and 1 images'",
        ),
        ({"problem": "?", "images": ["none.png"]}, "image 1: got 'none.png'; must be a file"),
        ({"problem": "?", "images": ["red.png"], "videos": ["a.mp4"]}, "audio and video are not supported"),
    ],
)
def test_rows_whose_images_and_places_differ_are_refused(folder, record, words):
    with pytest.raises(InvalidValue) as refused:
        rows_of(folder, record | {"answer": "2"})
    assert words in str(refused.value) and "row 1" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_images_of_a_parquet_file_and_of_a_data_set_are_read(folder, monkeypatch):
    datasets = pytest.importorskip("datasets")
    feature = datasets.Features(
        {
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "images": datasets.Sequence(datasets.Image()),
        }
    )
    rows = {"problem": ["<image>?", "<image>!"], "answer": ["1", "2"], "images": [[drawn("red")], [drawn("blue")]]}
    made = datasets.Dataset.from_dict(rows, features=feature)
    made.to_parquet(str(folder / "rows.parquet"))
    assert [row.images for row in load_rows(str(folder / "rows.parquet"))] == [(RED,), (BLUE,)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **settings: made)
    found = load_rows("owner/name")
    assert [row.images for row in found] == [(RED,), (BLUE,)]
    assert all(isinstance(row.images[0].source, bytes) for row in found)


# --- the task `data` ----------------------------------------------------------------------------------------


def data(folder, *records, **settings):
    rows_of(folder, *records)
    return Data(train=str(folder / "rows.jsonl"), held_out=0, **settings)


def test_duplicates_are_those_with_equal_text_and_equal_images(folder):
    def row(text, colour):
        return {"problem": text, "answer": "1", "images": [f"{colour}.png"]}

    (folder / "eval.jsonl").write_text(json.dumps(row("<image>?", "red")) + "\n")
    given = [row("<image>?", "red"), row("<image>?", "blue"), row("<image>!", "red"), row("<image>!", "red")]
    task = data(folder, *given, eval=str(folder / "eval.jsonl"))
    facts = task.facts()
    assert (facts["rows_train"], facts["rows_shared"], facts["rows_repeated"]) == (3, 1, 1)


def test_a_problem_has_the_images_of_its_row_and_the_digest_knows_them(folder):
    record = {"problem": "<image>?", "answer": "1", "images": ["red.png"]}
    task = data(folder, record, style="chat")
    problem = task.train_problem(0, 0)
    assert problem.images == (RED,) and problem.messages[0][1].startswith("<image>?")
    before = task.fingerprint()
    assert replace(task).fingerprint() == before
    (folder / "red.png").write_bytes(encoded(drawn("blue")))
    assert replace(task).fingerprint() != before


# --- the drawn task -----------------------------------------------------------------------------------------


def test_pictures_are_functions_of_seed_and_index_and_none_is_kept_for_evaluation():
    one, other = Pictures(eval_rows=20), Pictures(eval_rows=20)
    shown = [one.train_problem(3, index) for index in range(30)]
    assert shown == [other.train_problem(3, index) for index in range(30)]
    assert len({problem.images for problem in shown}) == 30
    assert {problem.images for problem in shown}.isdisjoint(problem.images for problem in one.eval_problems(20))
    assert {problem.id.split("-")[0] for problem in shown} == {"count", "digit", "bars"}
    assert all(problem.messages[0][1].startswith("<image>") for problem in shown)


def colours(problem) -> int:
    return len(problem.images[0].load().getcolors())


def test_golden_answers_are_what_is_drawn():
    counts = [Pictures(kinds=("count",)).train_problem(0, index) for index in range(12)]
    assert [colours(problem) - 1 for problem in counts] == [int(problem.data["answer"]) for problem in counts]
    for problem in (Pictures(kinds=("bars",)).train_problem(0, index) for index in range(12)):
        picture = problem.images[0].load()
        background = picture.getpixel((0, 0))
        rows = (range(picture.width) for _ in range(picture.height))
        places = [[x for x in row if picture.getpixel((x, y)) != background] for y, row in enumerate(rows)]
        first = next(row for row in places if row)  # the highest row that is not empty is the top of the tallest bar
        assert int(first[0] / picture.width * (colours(problem) - 1)) + 1 == int(problem.data["answer"])


def test_the_last_box_or_the_first_word_is_the_answer():
    task = Pictures()
    verdicts = {"4": 1.0, "4 bars": 1.0, r"it is \boxed{4}": 1.0, "it is 4": 0.0, r"4, no \boxed{5}": 0.0, "": 0.0}
    assert {text: task.reward({"answer": "4"}, text, False) for text in verdicts} == verdicts
    assert task.solution({"answer": "4"}) == r"\boxed{4}" and Pictures(style="plain").solution({"answer": "4"}) == "4"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kinds": ()}, "task.kinds"),
        ({"kinds": ("cats",)}, "task.kinds.*count, digit, bars"),
        ({"sides": (8, 20)}, "task.sides"),
        ({"sides": (50, 20)}, "task.sides"),
        ({"max_response": 0}, "task.max_response"),
        ({"eval_rows": 0}, "task.eval_rows"),
    ],
)
def test_settings_of_pictures_that_cannot_work_are_refused(settings, words):
    with pytest.raises(InvalidValue, match=words):
        Pictures(**settings)
