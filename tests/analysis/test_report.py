import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from aepo.analysis.report.build import gather, report
from aepo.analysis.report.figures import COLOURS, figures
from aepo.analysis.report.markdown import markdown, plain
from aepo.analysis.report.numbers import differences, group_table, groups, run_table
from aepo.analysis.report.page import page
from aepo.analysis.report.runs import base_beside, base_curve, first_curve, read_runs
from aepo.cli import Report
from aepo.engines.stages import measurements
from aepo.entropy.by_position import STARTS, means_by_position
from aepo.errors import InvalidValue
from tests import builders
from tests.run_folders import folder, held, row, sample, scores

HOSTILE = [
    '<script>document.title = "owned"</script>',
    "</pre></details><script src=http://evil.invalid/x.js></script>",
    "]]> <![CDATA[ <!-- <style>*{display:none}",
    "<img src=http://evil.invalid/x onerror=alert(1)><div <b",
    "&lt;script&gt; &amp;amp; \" ' ` ```\n```\n<iframe src='https://evil.invalid'>",
    "nul \x00 lone \ud800 right-to-left \u202e emoji \U0001f600 line \u2028 end",
]
NAME = "a<b>&'\"$x_{$|`[y](z)"


TAGS = {"html", "head", "meta", "title", "style", "body", "script", "h1", "h2", "p", "code", "pre", "ul", "li", "div"}
TAGS |= {"table", "caption", "thead", "tbody", "tr", "th", "td", "button", "figure", "img", "figcaption"}
TAGS |= {"details", "summary", "dl", "dt", "dd", "span"}


def cells(table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, (cell.text for cell in line), strict=True)) for line in table.rows]


@pytest.fixture
def several(tmp_path) -> list[Path]:
    """Two seeds of one target, one of another, and one run without control."""
    return [
        held(tmp_path / "aepo-0.5-seed0", 0.52),
        held(tmp_path / "aepo-0.5-seed1", 0.46, (0.5, 0.9), seed=1),
        held(tmp_path / "aepo-0.8-seed0", 0.8, (0.6, 0.7), target="0.8"),
        held(tmp_path / "grpo", 0.2, (0.3, 0.5), method="grpo", target=None),
    ]


def base(path: Path, benchmark: str = "paths", temperature: float = 1.0) -> Path:
    score = {f"pass@{k}": {"mean": k / 10, "low": k / 20, "high": k / 5} for k in (1, 2, 4)}
    part = {"benchmark": benchmark, "temperature": temperature, "top_p": 1.0, "n": 4, "problems": 8, "scores": score}
    path.mkdir()
    (path / "evaluation.json").write_text(json.dumps({"results": [part]}))
    return path


# --- numbers ------------------------------------------------------------------------------------------------


def test_the_table_says_what_the_rows_say(several):
    first, _, _, grpo = cells(run_table(read_runs(several)))
    assert first == {
        "run": "aepo-0.5-seed0",
        "method": "aepo",
        "target": "0.5",
        "seed": "0",
        "steps": "9",
        "entropy": "0.520",
        "error": "-0.020",
        "RMSE": "0.020",
        "/ floor": "",
        "settled": "0",
        "reward": "0.320",
        "pass@1": "0.400",
        "pass@4": "0.800",
        "extra": "25%",
        "seconds": "18.0",
    }
    assert grpo["target"] == grpo["error"] == grpo["settled"] == ""


def test_runs_alike_but_for_the_seed_have_an_interval_and_others_none(several):
    table = cells(group_table(groups(read_runs(several)), 4))
    assert [line["runs"] for line in table] == ["2", "1", "1"]
    assert table[0]["entropy"] == "0.490 (0.460 to 0.520)" and table[1]["entropy"] == "0.800"
    assert table[0]["pass@4"] == "0.850 (0.800 to 0.900)"
    assert group_table(groups(read_runs(several[1:])), 4) is None


def test_another_setting_makes_another_group(tmp_path):
    runs = [held(tmp_path / "a", 0.5), held(tmp_path / "b", 0.5, seed=1, steps=8)]
    assert len(groups(read_runs(runs))) == 2
    assert [line["setting"] for line in cells(differences(read_runs(runs)))] == ["seed", "steps"]


def test_the_base_model_is_that_of_the_runs_task_at_temperature_one(tmp_path):
    curve = base_curve(base(tmp_path / "base"), ["paths"])
    assert (curve.ks, curve.values, curve.high) == ([1, 2, 4], [0.1, 0.2, 0.4], [0.2, 0.4, 0.8])
    for wrong in (base(tmp_path / "other", "aime24"), base(tmp_path / "cold", temperature=0.1), tmp_path):
        with pytest.raises(InvalidValue, match="--base"):
            base_curve(wrong, ["paths"])


# --- figures ------------------------------------------------------------------------------------------------


def drawn(folders, curve=None):
    runs = read_runs(folders)
    return figures(runs, groups(runs), curve)


def lines(shown) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in shown.canvas.axes[0].lines}


def test_every_figure_holds_the_runs_numbers(several, tmp_path):
    shown, left_out = drawn(several, base_curve(base(tmp_path / "base"), ["paths"]))
    assert left_out == []
    by_name = {figure.name: figure for figure in shown}
    assert list(by_name) == ["entropy", "command", "reward", "pass-at-k", "performance", "position"]
    assert lines(by_name["entropy"])["aepo-0.8-seed0"] == [0.8] * 9
    assert "grpo" not in lines(by_name["command"]) and "Without one: grpo" in by_name["command"].caption
    assert lines(by_name["pass-at-k"])["grpo"] == pytest.approx([0.3, 0.4, 0.5])
    assert lines(by_name["pass-at-k"])["base model"] == [0.1, 0.2, 0.4]
    assert lines(by_name["position"])["grpo"] == pytest.approx([0.4, 0.2, 0.1])
    joined = by_name["performance"].canvas.axes[0].lines[0]
    assert list(joined.get_xdata()) == pytest.approx([0.49, 0.8])  # in order of entropy, and without GRPO's point
    assert list(joined.get_ydata()) == pytest.approx([0.45, 0.6])
    for figure in shown:
        for axes in figure.canvas.axes:
            assert axes.get_xlabel() and axes.get_ylabel()


def test_the_reward_is_a_mean_of_ten_steps(tmp_path):
    rows = [row(step, 0.5, reward=float(step == 0)) for step in range(12)]
    shown, _ = drawn([folder(tmp_path / "r", rows)])
    values = lines(next(figure for figure in shown if figure.name == "reward"))["r"]
    assert values[:2] == [1.0, 0.5] and values[9:] == [0.1, 0.0, 0.0]


def test_no_two_groups_of_many_look_the_same_and_repeats_do(tmp_path):
    targets = [i / 10 for i in range(1, 9)]
    shown, _ = drawn([held(tmp_path / f"r{t}-{seed}", t, seed=seed, target=str(t)) for t in targets for seed in (0, 1)])
    by_name = {figure.name: figure.canvas for figure in shown}
    solid = [line for line in by_name["entropy"].axes[0].lines if line.get_linestyle() != "--"]
    looks = [(line.get_color(), line.get_linestyle()) for line in solid]
    assert len(looks) == 16 and len(set(looks)) == 8 and looks[0::2] == looks[1::2]
    assert len(by_name["entropy"].legends[0].get_texts()) == 8
    assert len(by_name["pass-at-k"].axes[0].lines) == 8
    points = [drawn[0] for drawn in by_name["performance"].axes[0].containers]
    assert len({(point.get_color(), point.get_marker()) for point in points}) == 8 > len(set(COLOURS))
    curves = by_name["pass-at-k"].axes[0].lines
    assert len({(curve.get_color(), curve.get_marker()) for curve in curves}) == 8


def test_only_the_targets_of_one_method_are_joined(tmp_path):
    """Two methods at two targets each, one of them also at a moving target, and one without a target."""
    runs = [
        held(tmp_path / f"{m}-{t}", t + 0.01 * (m == "b"), target=str(t), method=m) for m in "ab" for t in (0.4, 0.6)
    ]
    (tmp_path / "moving").mkdir()
    for file in runs[0].iterdir():
        text = file.read_text().replace('target = "0.4"', 'target = "sine(0.5,0.1,60)"')
        (tmp_path / "moving" / file.name).write_text(text)
    shown, _ = drawn([*runs, tmp_path / "moving", held(tmp_path / "grpo", 0.5, method="grpo", target=None)])
    figure = next(figure for figure in shown if figure.name == "performance")
    grey = [line for line in figure.canvas.axes[0].lines if line.get_color() == "0.75"]
    assert [list(line.get_xdata()) for line in grey] == [pytest.approx([0.4, 0.6]), pytest.approx([0.41, 0.61])]
    assert "alike but for their target" in figure.caption
    shown, _ = drawn([runs[0], tmp_path / "grpo"])
    figure = next(figure for figure in shown if figure.name == "performance")
    assert "none are joined" in figure.caption


# --- what may be missing ------------------------------------------------------------------------------------


def test_a_run_without_a_step_says_so(tmp_path):
    out = report([folder(tmp_path / "new", [], steps=5)], None, None, ())
    assert out == tmp_path / "new" / "report" / "report.html"
    assert "new: no finished step yet" in out.read_text() and "<img" not in out.read_text()


def test_missing_keys_are_named_and_the_rest_is_shown(tmp_path):
    rows = [{"step": step, "reward": 0.5} for step in range(3)]
    made = gather(read_runs([folder(tmp_path / "r", rows)]), None, ())
    assert [figure.name for figure in made.figures] == ["reward"]
    said = "\n".join(made.missing)
    for words in ("no evaluation", "entropy_by_position", "lack entropy, seconds", "error, settling", "no samples"):
        assert words in said


def test_a_run_in_progress_with_a_half_written_row_and_no_config(tmp_path):
    run = folder(tmp_path / "r", [row(0, 0.7), row(1, 0.6)], steps=10)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "entr')
    made = gather(read_runs([run]), None, ())
    assert cells(made.tables[0])[0]["steps"] == "2 of 10" and "r: 2 of 10 steps so far" in made.missing
    (run / "config.toml").unlink()
    assert "no config.toml" in gather(read_runs([run]), None, ()).missing[0]


def test_numbers_that_are_none_or_nan_leave_gaps(tmp_path):
    rows = [row(0, 0.7), row(1, 0.6, reward=None, seconds=None), row(2, 0.5, reward=float("nan"))]
    made = gather(read_runs([folder(tmp_path / "r", rows)]), None, ())
    reward = next(figure for figure in made.figures if figure.name == "reward")
    assert list(reward.canvas.axes[0].lines[0].get_xdata()) == [0]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "RUN"), ('["x"]\n', "metrics.jsonl, line 1"), ('{"entropy": 1}\n', "line 1")]
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InvalidValue, match=words) as error:
        report([tmp_path], None, None, ())
    assert "\n" not in str(error.value) and not (tmp_path / "report").exists()


def without(key: str) -> list[dict]:
    return [{name: value for name, value in row(step, 0.5).items() if name != key} for step in range(3)]


ODD_ROWS = {
    "an older version, without saturated": without("saturated"),
    "without extra completions": without("extra_completions"),
    "no ordinary completion": [row(step, 0.5, completions=8) for step in range(3)],
    "null for a count": [row(step, 0.5, completions=None, extra_completions=None) for step in range(3)],
    "nothing but steps": [{"step": step} for step in range(3)],
}


@pytest.mark.parametrize("rows", ODD_ROWS.values(), ids=ODD_ROWS)
def test_rows_that_lack_something_are_shown_without_it(tmp_path, rows):
    made = gather(read_runs([folder(tmp_path / "r", rows)]), None, ())
    shown = cells(made.tables[0])[0]
    assert shown["entropy"] == ("0.500" if "entropy" in rows[0] else "")
    assert shown["extra"] == ("25%" if rows == ODD_ROWS["an older version, without saturated"] else "")


@pytest.mark.parametrize(
    "setting", ['seed = "a"', "seed = [1]", "steps = 0", 'steps = "many"', f"budget_completions = {10**400}"]
)
def test_an_odd_setting_is_unknown(tmp_path, setting):
    run = folder(tmp_path / "r", [row(0, 0.5)])
    (run / "config.toml").write_text(setting)
    made = gather(read_runs([run]), None, ())
    assert cells(made.tables[0])[0]["steps"] == "1" and page(made, {f.name: b"" for f in made.figures})


def test_a_folder_whose_name_is_no_utf8(tmp_path, capsys):
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    folder(run, [row(0, 0.5), row(1, 0.5)])
    Report((run,)).run()
    assert capsys.readouterr().out.encode() == f"written: {tmp_path}/r?/report/report.html\n".encode()
    assert "r?" in (run / "report" / "report.md").read_text()


def test_a_run_that_its_budget_ended_is_finished(tmp_path):
    run = folder(tmp_path / "r", [row(0, 0.7), row(1, 0.6)], steps=10)
    config = run / "config.toml"
    config.write_text(f"budget_completions = 80\n{config.read_text()}")
    made = gather(read_runs([run]), None, ())
    assert cells(made.tables[0])[0]["steps"] == "2, budget reached" and not any("so far" in s for s in made.missing)


# --- what lies beside runs ----------------------------------------------------------------------------------


def test_what_a_pattern_matches_beside_runs_is_left_out_and_counted(several, tmp_path, capsys):
    for run in several:
        run.with_name(f"{run.name}.toml").write_text("")
    for _ in range(2):  # the second time there is report/, too
        made = report(sorted(tmp_path.iterdir()), None, None, ())
        assert made == tmp_path / "report" / "report.html" and "Report on 4 runs" in made.read_text()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("aepo: left out, no run folders: 4 ('aepo-0.5-seed0.toml', ") and first.endswith("1 more)")
    assert "no run folders: 5 " in second


def test_one_run_among_others_is_reported_in_its_own_folder(several, tmp_path):
    (tmp_path / "a.toml").write_text("")
    assert report([tmp_path / "a.toml", several[0]], None, None, ()) == several[0] / "report" / "report.html"


def test_paths_of_which_none_is_a_run_and_a_slip_of_the_pen_are_refused(several, tmp_path):
    (tmp_path / "a.toml").write_text("")
    for paths in ([tmp_path / "a.toml"], [tmp_path / "a.toml", tmp_path], [several[0], tmp_path / "aepo-0.5-sed1"]):
        with pytest.raises(InvalidValue, match="RUN: got .*; must be a run folder"):
            report(paths, None, None, ())


def base_json(path: Path, task: dict, correct=(0, 2, 4), model="builtin") -> Path:
    settings = {"model": model, "task": task}
    problems = [f"p{number}" for number in range(len(correct))]
    path.write_text(json.dumps({"settings": settings, "problems": problems, "correct": correct, "samples": 4}))
    return path


def test_golden_the_base_model_of_a_comparison(tmp_path):
    """0, 2 and 4 of 4 right: pass@1 0, 1/2, 1; pass@2 0, 5/6, 1; pass@4 0, 1, 1."""
    file = base_json(tmp_path / "base.json", {"name": "paths"})
    for given in (file, tmp_path):
        curve = base_curve(given, ["paths"])
        assert curve.ks == [1, 2, 4] and curve.values == pytest.approx([1 / 2, 11 / 18, 2 / 3])
        assert (curve.low[0], curve.high[0]) == (0.0, 1.0) and "3 problems" in curve.about
    assert base_curve(base_json(file, {"name": "paths"}, [3]), ["paths"]).low == ()
    with pytest.raises(InvalidValue, match=r"--base: .* must be an evaluation of the runs' task \(countdown\)"):
        base_curve(file, ["countdown"])
    for text in ("[]", "{", '{"correct": [9], "problems": ["a"], "samples": 4}', '{"correct": 3}'):
        file.write_text(text)
        with pytest.raises(InvalidValue, match="--base: got .*base.json") as error:
            base_curve(file, ["paths"])
        assert len(str(error.value).splitlines()) == 1


def test_the_base_model_is_found_beside_the_runs_where_it_is_theirs(several, tmp_path):
    file = base_json(tmp_path / "base.json", {"name": "paths"})
    text = report(several, tmp_path / "out", None, ()).with_suffix(".md").read_text()
    assert "Black: the base model, 4 samples of each of 3 problems, from base.json" in text
    for other in ({"task": {"name": "paths", "numbers": 9}}, {"task": {"name": "paths"}, "model": "another"}):
        base_json(file, **other)
        assert "base.json" not in report(several, tmp_path / "out", None, ()).with_suffix(".md").read_text()
    file.write_text("{")
    assert "base.json" not in report(several, tmp_path / "out", None, ()).with_suffix(".md").read_text()


def test_chosen_steps(several):
    made = gather(read_runs(several[:1]), None, (3, 77))
    assert [(part.step, [text.text for text in part.samples]) for part in made.samples] == [
        (3, ["answer 3a", "answer 3b"])
    ]
    assert "aepo-0.5-seed0: no samples of step 77" in made.missing
    assert [part.step for part in gather(read_runs(several[:1]), None, ()).samples] == [0, 4, 8]


# --- the documents ------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Tags, what they load, and the text of each <pre>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.loads, self.handlers, self.pres, self.inside = [], [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        self.handlers += [name for name, _ in attributes if name.startswith("on") or name == "style"]
        if tag == "pre":
            self.pres.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data):
        if self.inside:
            self.pres[-1] += data


def hostile(path: Path) -> Path:
    rows = [row(step, 0.5) for step in range(3)]
    rows[-1]["evaluation"] = scores(0.4, 0.8)
    return folder(path, rows, [sample(0, text, prompt=text) for text in HOSTILE])


def test_hostile_samples_and_names_stay_text(tmp_path):
    document = report([hostile(tmp_path / NAME)], tmp_path / "out", None, ()).read_text("ascii")
    found = Reader(document)
    assert found.pres == [text.replace("\ud800", "\ufffd") for text in HOSTILE]
    assert found.tags.count("script") == 1 and not found.handlers
    assert set(found.tags) <= TAGS


def test_nothing_is_loaded_from_anywhere(several, tmp_path):
    text = report(several, tmp_path / "out", base(tmp_path / "base"), ()).read_text()
    found = Reader(text)
    assert len(found.loads) == 6 and all(load.startswith("data:image/svg+xml;base64,") for load in found.loads)
    assert not re.search(r"https?:|url\(|@import|\bimport\b", text)
    assert "default-src 'none'; img-src data:" in text


def test_files_of_a_report_on_several_runs(several, tmp_path):
    assert report(several, None, None, ()) == tmp_path / "report" / "report.html"
    names = {"entropy", "command", "reward", "pass-at-k", "performance", "position"}
    assert {path.name for path in (tmp_path / "report" / "figures").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    assert [path.name for path in (tmp_path / "report").glob(".*")] == []


def test_the_markdown_twin_says_the_same_and_shows_no_tag(tmp_path):
    made = gather(read_runs([hostile(tmp_path / NAME), held(tmp_path / "b", 0.4)]), None, ())
    text = markdown(made, "figures")
    for sentence in (*made.missing, *(table.caption for table in made.tables), *(f.caption for f in made.figures)):
        assert plain(sentence) in text
    assert all(f"(figures/{figure.name}.png)" in text for figure in made.figures)
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.S | re.M)
    assert set(re.findall(r"<[^>]*>", outside)) == {"<details>", "<summary>", "</summary>", "</details>"}
    assert "evil" not in re.sub(r"^prompt .*$", "", outside, flags=re.M)
    header, *body = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"\|", header)) for line in body)


def test_a_long_sample_is_cut_in_the_twin_alone(tmp_path):
    run = folder(tmp_path / "r", [row(0, 0.5)], [sample(0, "x" * 1000)])
    made = gather(read_runs([run]), None, ())
    assert "[400 characters more]" in markdown(made, "f") and "x" * 601 not in markdown(made, "f")
    assert "x" * 1000 in page(replace(made, figures=()), {})


def test_the_command(several, tmp_path, capsys):
    Report(tuple(several), tmp_path / "out", base(tmp_path / "base"), (2,)).run()
    assert capsys.readouterr().out == f"written: {tmp_path / 'out' / 'report.html'}\n"
    assert "band 95 % by bootstrap over problems" in (tmp_path / "out" / "report.md").read_text()


# --- entropy by position ------------------------------------------------------------------------------------


def test_golden_buckets():
    assert len(STARTS) == 64 and STARTS[:19] == (*range(17), 19, 23) and STARTS[-1] == 55109
    values = torch.tensor([[1.0, 3.0, 9.0], [2.0, 5.0, 7.0]])
    assert means_by_position(values, torch.tensor([[1, 1, 0], [1, 0, 0]])) == [1.5, 3.0]
    long = means_by_position(torch.arange(24.0)[None], torch.ones(1, 24))
    assert long[15:] == [15.0, 17.0, 20.5, 23.0]  # positions 16-18, 19-22, 23
    assert len(means_by_position(torch.ones(1, 60_000), torch.ones(1, 60_000))) == 64
    assert means_by_position(values, torch.zeros(2, 3)) == []
    poisoned = torch.tensor([[1.0, float("nan")]])
    assert means_by_position(poisoned, torch.tensor([[True, False]])) == [1.0]


def test_the_row_has_the_ordinary_rows_entropy_by_position():
    samples = [
        builders.sample(1.0, tokens=(1, 2, 3)),
        builders.sample(0.0, tokens=(1,)),
        builders.sample(1.0, group=1, extra=True, tokens=(1, 2, 3, 4)),
    ]
    entropy = torch.tensor([[0.5, 0.25, 1.0, 0], [1.5, 0, 0, 0], [8.0, 8, 8, 8]])
    batch = builders.scored(samples, entropy=entropy, logprobs=-1.0)
    logged = measurements(builders.measured(0.8125, batch=batch), samples, sampler=True)
    assert logged["entropy_by_position"] == [1.0, 0.25, 1.0]


# --- what was trained, and the base model -------------------------------------------------------------------

MADE = """
[optimizer]
lr = 0.0001
minibatches = 2
"""


def test_the_report_names_model_data_reward_and_learning_rate(tmp_path):
    run = folder(tmp_path / "r", [row(1, 0.5)], steps=1)
    (run / "config.toml").write_text((run / "config.toml").read_text() + MADE)
    facts = dict(gather(read_runs([run]), None, ()).facts)
    assert facts == {
        "model": "builtin (all weights, float32)",
        "data": "the task paths",
        "reward": "the task's own",
        "learning rate": "0.0001, 2 updates a step",
    }
    text = report([run], tmp_path / "out", None, ()).read_text()
    assert "<dt>learning rate</dt><dd>0.0001, 2 updates a step</dd>" in text
    assert "- data: the task paths\n" in (tmp_path / "out" / "report.md").read_text()


def test_samples_have_their_prompt_and_the_known_answer(tmp_path):
    shown = sample(1, "4", prompt_text="2 + <2>", answer="5", rewards={"a": 0.5})
    run = folder(tmp_path / "r", [row(1, 0.5)], [shown], steps=1)
    text = report([run], tmp_path / "out", None, ()).read_text()
    assert '<pre class="prompt">2 + &lt;2&gt;</pre>\n<pre>4</pre>' in text
    assert "reward 1, a 0.5, known answer 5" in text


def test_the_evaluation_before_training_is_the_base_models_curve(tmp_path):
    run = folder(tmp_path / "r", [row(1, 0.5, evaluation=scores(0.5, 0.75))], steps=1)
    first = {"step": 0, "problems": ["a", "b"], "correct": [1, 3], "samples": 4}
    assert any("base model's pass@k" in sentence for sentence in gather(read_runs([run]), None, ()).missing)
    (run / "evaluations.jsonl").write_text(json.dumps(first) + "\n")
    text = report([run], tmp_path / "out", None, ()).read_text()
    assert "before training, step 0 of r" in text and "base model&#x27;s pass@k: give it" not in text
    curve = first_curve([run], read_runs([run]))
    assert curve is not None and curve.ks == [1, 2, 4] and curve.values[0] == 0.5


def test_an_evaluation_of_the_same_data_beside_the_runs_is_found(tmp_path):
    run = folder(tmp_path / "runs" / "r", [row(1, 0.5, evaluation=scores(0.5, 0.75))], steps=1)
    text = (run / "config.toml").read_text().replace('name = "paths"', 'name = "data"\neval = "/d/mine.jsonl"')
    (run / "config.toml").write_text(text)
    given = base(tmp_path / "runs" / "evaluation-x")
    found = json.loads((given / "evaluation.json").read_text())
    found["settings"] = {"model": "builtin", "folder": "built in"}
    found["results"][0]["benchmark"] = "mine"

    def beside(**changes):
        (given / "evaluation.json").write_text(json.dumps({**found, **changes}))
        return base_beside([run], read_runs([run]))

    assert beside() == given
    assert "base model" in report([run], tmp_path / "out", None, ()).read_text()
    assert beside(settings={"model": "other", "folder": "/m/other"}) is None
    other = [{**found["results"][0], "benchmark": "theirs"}]
    assert beside(results=other) is None


def test_a_report_to_which_nothing_is_missing_says_nothing_of_it(tmp_path):
    run = folder(tmp_path / "r", [row(1, 0.5, evaluation=scores(0.5, 0.75))], [sample(1, "x")], steps=1)
    made = gather(read_runs([run]), None, ())
    assert made.missing and "What is not here" in markdown(made, "f")
    whole = replace(made, missing=[])
    assert "not here" not in markdown(whole, "f") and "nothing is missing" not in markdown(whole, "f")


# --- in a browser -------------------------------------------------------------------------------------------

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium (AEPO_BROWSER or on the path), driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make test-report)")
    with playwright.sync_playwright() as driver:
        known = (os.environ.get("AEPO_BROWSER"), *map(shutil.which, BROWSERS), driver.chromium.executable_path)
        found = next((path for path in known if path and Path(path).exists()), None)
        if found is None:
            pytest.skip("no Chromium on the path, and AEPO_BROWSER does not name one (make test-report)")
        chromium = driver.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_shows_sorts_and_errs_nowhere(browser, several, tmp_path, scheme):
    written = report([*several, hostile(tmp_path / NAME)], tmp_path / "out", base(tmp_path / "base"), ())
    tab, said, asked = browser.new_page(color_scheme=scheme), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(written.as_uri())
    assert tab.title() == "Report on 5 runs"
    sizes = tab.evaluate(
        "[...document.images].map(i => i.complete && i.naturalWidth && i.getBoundingClientRect().height)"
    )
    assert len(sizes) == 6 and all(size and size > 200 for size in sizes)

    column = "[...document.querySelector('tbody').rows].map(r => r.cells[{}].textContent)"
    tab.get_by_role("button", name="entropy").first.click()
    assert tab.evaluate(column.format(5)) == ["0.200", "0.460", "0.500", "0.520", "0.800"]
    tab.get_by_role("button", name="entropy").first.click()
    assert tab.evaluate(column.format(5)) == ["0.800", "0.520", "0.500", "0.460", "0.200"]
    assert tab.evaluate("document.querySelector('th[aria-sort=descending]').textContent") == "entropy"
    tab.get_by_role("button", name="error").first.click()  # a run without a target has none: last
    assert tab.evaluate(column.format(6))[-1] == ""
    tab.get_by_role("button", name="method").first.click()
    assert tab.evaluate(column.format(1)) == ["aepo"] * 4 + ["grpo"]

    contrast = "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    ink, back = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in tab.evaluate(contrast))
    assert abs(ink - back) > 500 and (ink > back) == (scheme == "dark")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [written.as_uri()]
    tab.close()


@pytest.mark.parametrize("width", [420, 1000, 1200])
def test_nothing_is_cut_at_this_width(browser, several, tmp_path, width):
    written = report([*several, hostile(tmp_path / NAME)], tmp_path / "out", base(tmp_path / "base"), ())
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(written.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    widest = "Math.max(...[...document.querySelectorAll('td, dd, pre')].map(e => e.getBoundingClientRect().right))"
    assert tab.evaluate(widest) <= width
    tab.close()


def test_the_browser_would_refuse_a_script_that_got_through(browser, several, tmp_path):
    written = report(several[:1], tmp_path / "out", None, ())
    text = written.read_text().replace(
        "</h1>", "</h1><script>document.title = 'owned'</script><img src=http://e.invalid>"
    )
    written.write_text(text)
    tab, asked = browser.new_page(), []
    tab.on("requestfinished", lambda request: asked.append(request.url))
    tab.goto(written.as_uri())
    assert tab.title() == "Report on aepo-0.5-seed0"
    assert all(url.startswith(("data:", "file:")) for url in asked)
    tab.close()
