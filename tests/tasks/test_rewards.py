from aepo.tasks.rewards import Answered, Graded


def test_graded_is_the_graders_verdict():
    items = [Answered("", text, "2", {}) for text in (r"\boxed{2}", r"\boxed{3}", "2")]
    assert [v.reward for v in Graded(processes=1).judge(items)] == [1.0, 0.0, 0.0]
