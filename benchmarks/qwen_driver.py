"""Run by the Python of the original program: read cases from standard input, write its answers and verdicts.

python qwen_driver.py EVALUATION, where EVALUATION is the original's folder of this name. Each line is {"name",
"completion", "example"}; the reply is [known answer, given answer, verdict]. What it computes is what the original's
math_eval.py does between a completion and its score, with its limit of three seconds, of processor time here: null.
"""

import json
import signal
import sys

sys.path.insert(0, sys.argv[1])
import grader
import parser as reader

LETTERS = set("ABCDE")


class Late(BaseException):
    pass


def late(*_):
    raise Late


def judge(name, completion, example):
    _, gold = reader.parse_ground_truth(example, name)
    completion = completion.strip()
    keep_units = name in reader.STRIP_EXCEPTIONS
    given = reader.strip_string(reader.extract_answer(completion, name), skip_unit=keep_units)
    if gold in LETTERS and given not in LETTERS:
        given = reader.choice_answer_clean(completion)
    elif set(gold) <= LETTERS and not set(given) <= LETTERS:
        given = "".join(letter for letter in given if letter in LETTERS)
    signal.setitimer(signal.ITIMER_PROF, 3)
    try:
        right = bool(grader.math_equal(given, gold))
    except Late:
        right = None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return [gold, given, right]


signal.signal(signal.SIGPROF, late)
for line in sys.stdin:
    print(json.dumps(judge(**json.loads(line))), flush=True)
