"""What a chat prompt holds besides the problem: the system turn, the template and its arguments."""

import json

import pytest

from aepo.errors import InvalidValue
from aepo.tasks import Data, Gym

TURNS = [{"role": "user", "content": "3?"}]


def data(tmp_path, rows, **settings) -> Data:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"answer": "1", **row}) + "\n" for row in rows))
    return Data(train=str(file), **settings)


def problems(task: Data) -> dict:
    return {
        p.id: p for p in [*(task.train_problem(0, i) for i in range(len(task._rows.train))), *task.eval_problems(1)]
    }


def test_the_system_prompt_goes_before_turns_that_have_none(tmp_path):
    own = [{"role": "developer", "content": "Mine."}, *TURNS]
    task = data(tmp_path, [{"prompt": "1?"}, {"prompt": TURNS}, {"prompt": own}], style="chat", system_prompt="Brief.")
    found = problems(task)
    assert [found["1"].messages[0], found["1"].messages[1][0]] == [("system", "Brief."), "user"]
    assert found["2"].messages == (("system", "Brief."), ("user", "3?"))
    assert found["3"].messages == (("developer", "Mine."), ("user", "3?"))
    # A reward function is shown the turns that the model saw.
    assert found["2"].data["messages"] == found["2"].messages


def test_a_rows_own_arguments_go_before_those_of_the_settings(tmp_path):
    rows = [{"prompt": TURNS, "chat_template_kwargs": {"a": 2, "c": None}}, {"prompt": [{**TURNS[0], "content": "4?"}]}]
    found = problems(data(tmp_path, rows, chat_template_kwargs={"a": 1, "b": 3}))
    assert found["1"].template_kwargs == {"a": 2, "b": 3} and found["2"].template_kwargs == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "setting", [{"system_prompt": "x"}, {"chat_template": "x.jinja"}, {"chat_template_kwargs": {"a": 1}}]
)
def test_a_setting_of_chats_is_refused_where_a_prompt_is_plain_text(tmp_path, setting):
    (name,) = setting
    task = data(tmp_path, [{"prompt": "1?"}, {"prompt": "2?"}], **setting)
    with pytest.raises(
        InvalidValue, match=rf"^task\.{name}: got .*the style chat or think.*line [12], row [12] is plain"
    ):
        task.fitted(lambda problem: 1)


def test_the_template_is_the_text_of_the_file(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    (tmp_path / "empty.jinja").write_text(" ")
    assert Gym(chat_template=str(tmp_path / "t.jinja")).template() == "{{ messages }}" and Gym().template() is None
    for name, words in {"none.jinja": "No such file", "empty.jinja": "a file that is not empty"}.items():
        with pytest.raises(InvalidValue, match=rf"^task\.chat_template: got .*{words}"):
            Gym(chat_template=str(tmp_path / name)).template()
