"""Both tasks: verifiers, exact counts, the ceiling, and the split into training and evaluation."""

import math
from dataclasses import fields
from fractions import Fraction
from itertools import islice, pairwise, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aepo.tasks import TASKS, Countdown, Paths, Programs
from aepo.tasks.countdown import expression_value
from aepo.tasks.paths import ceiling

BUILT_IN = ("countdown", "paths", "programs")
PATHS = Paths()
TINY = Paths(numbers=6, max_moves=3, move_weights=(1.0,) * 7, eval_pairs=5, train_pairs=None, train_distance=3)
PROGRAMS = Programs()
COUNTDOWN = Countdown()
GARBAGE = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*PATHS.vocabulary, *COUNTDOWN.vocabulary, "<pad>", "²", "٣", "-1"])).map(" ".join),
)


def neighbours(number: int, size: int) -> set[int]:
    """The rule once more, written out."""
    moves = {number + 1, number - 1, number + 5, number - 5, number + 9, number - 9, 2 * number}
    return {there for there in moves if 0 <= there < size}


def right_paths(start: int, goal: int, task: Paths) -> list[tuple[int, ...]]:
    """By trying everything."""
    found = []
    for length in range(1, task.max_moves + 1):
        for path in product(range(task.numbers), repeat=length):
            legal = all(b in neighbours(a, task.numbers) for a, b in zip((start, *path), path, strict=False))
            if legal and path[-1] == goal:
                found.append(path)
    return found


def token_mean_entropy(answers: list[list[tuple[int, ...]]], logits: list[torch.Tensor]) -> torch.Tensor:
    """From the definition: next-token distributions of each prefix, weighted by how often it is visited."""
    total, tokens = torch.zeros(()).double(), torch.zeros(()).double()
    for paths, scores in zip(answers, logits, strict=True):
        chance = scores.softmax(0)
        visits: dict[tuple[int, ...], torch.Tensor] = {}
        for path, weight in zip(paths, chance, strict=True):
            whole = (*path, -1)
            for end in range(len(whole) + 1):
                visits[whole[:end]] = visits.get(whole[:end], 0.0) + weight
        for prefix, weight in visits.items():
            after = [w for longer, w in visits.items() if len(longer) == len(prefix) + 1 and longer[:-1] == prefix]
            if after:
                following = torch.stack(after) / weight
                total = total - weight * (following * following.log()).sum()
                tokens = tokens + weight
    return total / tokens


# --- paths ---


def test_path_counts_and_distances_agree_with_enumeration():
    counts, distances = TINY.path_counts(), TINY.distances()
    for start, goal in product(range(6), repeat=2):
        lengths = [len(path) for path in right_paths(start, goal, TINY)]
        assert counts[:, start, goal].tolist() == [lengths.count(n) for n in (1, 2, 3)]
        assert distances[start, goal] == min(lengths, default=4)


def test_ceiling_of_two_equal_answers_is_half_a_bit_per_token():
    """One prompt, two answers of one move and two tokens each: log(2) / 2."""
    assert ceiling(torch.tensor([[2]])) == pytest.approx(math.log(2) / 2, abs=1e-12)


def test_ceiling_of_a_single_answer_is_zero():
    assert ceiling(torch.tensor([[1], [0]])) == pytest.approx(0.0, abs=1e-12)


def test_ceiling_is_reached_and_never_passed():
    """Gradient ascent on the token-mean entropy over all distributions on right answers ends at the ceiling."""
    problems = [TINY.train_problem(0, index).data for index in range(len(TINY._train))]
    answers = [right_paths(problem["start"], problem["goal"], TINY) for problem in problems]
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(paths), generator=generator).double().requires_grad_() for paths in answers]
    optimizer = torch.optim.LBFGS(logits, max_iter=40, line_search_fn="strong_wolfe")
    best = TINY.ceiling()

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = -token_mean_entropy(answers, logits)
        value.backward()
        assert -value.item() <= best + 1e-9
        return value

    assert -loss().item() < best - 0.01
    optimizer.step(loss)
    assert token_mean_entropy(answers, logits).item() == pytest.approx(best, abs=1e-5)


def test_default_ceiling_leaves_room_above_the_targets():
    assert PATHS.ceiling() == pytest.approx(1.2275, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("18 36 41 42", 1.0),
        ("16 17 18 36 41 42", 1.0),
        ("18 36 41 42 43 42", 1.0),  # past the goal and back
        ("  18\n36 41   42 ", 1.0),
        ("18 36 41", 0.0),  # ends elsewhere
        ("18 36 41 42 43", 0.0),  # passes the goal and ends elsewhere
        ("18 35 42", 0.0),  # no move leads from 18 to 35
        ("42", 0.0),
        ("18 19 18 19 18 36 41 42", 1.0),  # eight numbers, the limit
        ("18 19 18 19 18 19 18 36 41 42", 0.0),
        ("", 0.0),
        (":", 0.0),
        ("18 36 41 42 :", 0.0),
        ("18 36 41 042", 0.0),
        ("18 36 41 4 2", 0.0),
        ("18 36 41 ٤٢", 0.0),
        ("9" * 5000, 0.0),
    ],
)
def test_paths_verifier(text, right):
    assert PATHS.reward({"start": 17, "goal": 42}, text, truncated=False) == right


def test_a_path_that_was_cut_is_wrong():
    assert PATHS.reward({"start": 17, "goal": 42}, "18 36 41 42", truncated=True) == 0.0


def test_numbers_outside_the_range_are_wrong():
    assert PATHS.reward({"start": 99, "goal": 99}, "100 99", truncated=False) == 0.0
    assert PATHS.reward({"start": 0, "goal": 0}, "-1 0", truncated=False) == 0.0


@st.composite
def walks(draw: st.DrawFn) -> list[int]:
    walk = [draw(st.integers(0, 99))]
    for _ in range(draw(st.integers(1, PATHS.max_moves))):
        walk.append(draw(st.sampled_from(sorted(neighbours(walk[-1], 100)))))
    return walk


@given(walks())
def test_every_legal_walk_is_right(walk):
    problem = {"start": walk[0], "goal": walk[-1]}
    assert PATHS.reward(problem, " ".join(map(str, walk[1:])), truncated=False) == 1.0


@given(walks(), st.data())
def test_one_illegal_step_makes_it_wrong(walk, data):
    place = data.draw(st.integers(1, len(walk) - 1))
    illegal = sorted(set(range(120)) - neighbours(walk[place - 1], 100))
    broken = [*walk[:place], data.draw(st.sampled_from(illegal)), *walk[place + 1 :]]
    problem = {"start": walk[0], "goal": walk[-1]}
    assert PATHS.reward(problem, " ".join(map(str, broken[1:])), truncated=False) == 0.0


def test_every_problem_can_be_solved_and_training_is_near():
    distances = PATHS.distances()
    for problem in PATHS.eval_problems(256):
        assert 1 <= distances[problem.data["start"], problem.data["goal"]] <= 8
    for problem in (PATHS.train_problem(0, index) for index in range(128)):
        assert 1 <= distances[problem.data["start"], problem.data["goal"]] <= 4


def test_every_round_of_training_is_a_new_order_of_the_same_pairs():
    rounds = [[PATHS.train_problem(3, 128 * lap + i).id for i in range(128)] for lap in (0, 1)]
    other_seed = [PATHS.train_problem(4, i).id for i in range(128)]
    assert len(set(rounds[0])) == 128
    assert set(rounds[0]) == set(rounds[1]) == set(other_seed)
    assert rounds[0] != rounds[1] and rounds[0] != other_seed


def test_pretraining_walks_are_right_answers_of_mixed_lengths():
    lengths = set()
    for prompt, completion in islice(PATHS.pretraining_examples(0), 500):
        start, goal, _ = prompt.split()
        assert PATHS.reward({"start": int(start), "goal": int(goal)}, completion, truncated=False) == 1.0
        lengths.add(len(completion.split()))
    assert lengths == {2, 3, 4, 5, 6, 7}


def test_weights_make_moves_rare():
    steps = {1: 0, 9: 0}
    for prompt, completion in islice(PATHS.pretraining_examples(0), 2000):
        walk = [int(word) for word in (prompt.split()[0], *completion.split())]
        for before, after in pairwise(walk):
            if 20 < before < 80 and after - before in steps:
                steps[after - before] += 1
    assert 4.0 < steps[1] / steps[9] < 6.0


@pytest.mark.parametrize(
    "changed",
    [
        {"move_weights": (1.0,)},
        {"moves": ((1, 50), (1, 60)), "move_weights": (1.0, 1.0)},  # no way on from 50 and above
        {"eval_pairs": 0},
        {"eval_pairs": 10_000},
        {"train_distance": 0},
    ],
)
def test_paths_that_make_no_sense_are_refused(changed):
    with pytest.raises(ValueError, match=r"."):
        Paths(**changed)


# --- countdown ---


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("( 12 - 7 ) * 3", 1.0),
        ("3 * ( 12 - 7 )", 1.0),
        ("( ( 12 ) - 7 ) * 3", 0.0),  # longer than any answer needs to be
        ("12 - 7 * 3", 0.0),
        ("( 12 - 7 ) * 3 )", 0.0),
        ("( 12 - 7 * 3", 0.0),
        ("12 + 3", 0.0),  # reaches 15 without the 7
        ("( 12 - 7 ) * 3 3", 0.0),
        ("15", 0.0),
        ("", 0.0),
        ("3 7 12", 0.0),
        ("* 3 7 12", 0.0),
        ("12 / ( 3 - 3 )", 0.0),
    ],
)
def test_countdown_verifier(text, right):
    assert COUNTDOWN.reward({"numbers": (3, 7, 12), "target": 15}, text, truncated=False) == right
    assert COUNTDOWN.reward({"numbers": (3, 7, 12), "target": 15}, text, truncated=True) == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8 - 3 - 2", Fraction(3)),
        ("8 / 4 / 2", Fraction(1)),
        ("2 + 3 * 4", Fraction(14)),
        ("( 2 + 3 ) * 4", Fraction(20)),
        ("1 / 3 * 3", Fraction(1)),  # exact where floating point need not be
        ("7 / 2", Fraction(7, 2)),
        ("1 / ( 2 - 2 )", None),
        ("1 2", None),
        ("( 1", None),
        ("x", None),
        ("", None),
    ],
)
def test_expressions_have_exact_values(text, value):
    assert expression_value(text.split()) == value


def test_countdown_problems_are_solvable_by_trying_everything():
    for problem in [*COUNTDOWN.eval_problems(10), *(COUNTDOWN.train_problem(0, i) for i in range(10))]:
        forms = ("( {} {} {} ) {} {}", "{} {} ( {} {} {} )")
        candidates = (
            form.format(a, f, b, g, c)
            for a, b, c in permutations(problem.data["numbers"])
            for f, g in product("+-*/", repeat=2)
            for form in forms
        )
        assert any(COUNTDOWN.reward(problem.data, text, truncated=False) for text in candidates), problem


def test_countdown_pretraining_is_right():
    for prompt, completion in islice(COUNTDOWN.pretraining_examples(0), 200):
        *numbers, _, target, _ = prompt.split()
        problem = {"numbers": tuple(map(int, numbers)), "target": int(target)}
        assert COUNTDOWN.reward(problem, completion, truncated=False) == 1.0


# --- every task ---


@pytest.mark.parametrize("name", BUILT_IN)
def test_training_and_evaluation_are_disjoint_and_fixed(name):
    task = TASKS[name]()
    kept = {problem.id for problem in task.eval_problems(256)}
    assert len(kept) == 256
    assert kept.isdisjoint(task.train_problem(seed, index).id for seed in (0, 1) for index in range(500))
    assert TASKS[name]().eval_problems(5) == task.eval_problems(256)[:5]
    assert TASKS[name]().train_problem(7, 9) == task.train_problem(7, 9)
    assert len({task.train_problem(0, index).id for index in range(20)}) > 10
    with pytest.raises(ValueError, match="evaluation.prompts: got"):
        task.eval_problems(257)


@pytest.mark.parametrize("name", BUILT_IN)
def test_vocabulary_and_limit_cover_every_prompt_and_answer(name):
    task = TASKS[name]()
    words = set(task.vocabulary)
    assert len(words) == len(task.vocabulary)
    for prompt, completion in islice(task.pretraining_examples(1), 300):
        assert set(prompt.split()) | set(completion.split()) <= words
        assert len(completion.split()) < task.max_tokens
    assert all(set(problem.text.split()) <= words for problem in task.eval_problems(256))


@pytest.mark.parametrize("name", BUILT_IN)
@settings(max_examples=200)
@given(text=GARBAGE, truncated=st.booleans())
def test_no_text_makes_a_verifier_raise(name, text, truncated):
    task = {"paths": PATHS, "countdown": COUNTDOWN, "programs": PROGRAMS}[name]
    assert task.reward(task.eval_problems(1)[0].data, text, truncated) in (0.0, 1.0)


@pytest.mark.parametrize("task", [PATHS, COUNTDOWN, PROGRAMS], ids=["paths", "countdown", "programs"])
def test_pretraining_depends_on_the_fields_in_its_key_alone(task):
    """Whoever adds a field that shapes the data must add it to the key, or a stale model is served."""
    other = {
        "numbers": 50, "moves": ((1, 1), (1, -1)), "move_weights": (9.0, 1.0), "walk_moves": (3, 4), "count": 4,
        "largest": 5, "largest_target": 30, "max_moves": 7, "eval_pairs": 9, "train_pairs": 64,
        "train_distance": 3, "split_seed": 1, "eval_problems_kept": 9, "max_statements": 5, "kinds": ("int",),
        "eval_functions": 9, "train_functions": 64, "train_statements": 2,
    }  # fmt: skip
    two_moves = {"moves": ((1, 1), (1, -2)), "move_weights": (1.0, 1.0), "numbers": 10, "eval_pairs": 9}

    def data(changed):
        changed = two_moves | changed if changed.keys() & {"moves", "move_weights"} else changed
        return list(islice(type(task)(**changed).pretraining_examples(0), 400))

    for name in (field.name for field in fields(task)):
        plain = data({"moves": two_moves["moves"]} if name in ("moves", "move_weights") else {})
        assert (data({name: other[name]}) != plain) == (name in task.pretraining_key), name
