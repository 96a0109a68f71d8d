"""Run by the Python of the original program: read cases from standard input, write its answers and verdicts.

python qwen_driver.py EVALUATION, where EVALUATION is the original's folder of this name. Each line is {"name",
"completion", "example"}; the reply is the verdict. What it computes is what the original's math_eval.py does between a
completion and its score, with a limit of 20 seconds of processor time. (The original has three on the clock, so that
its verdict on a slow row depends on the machine.) A row that comes to the limit is null. A process of its own judges,
so that the limit also ends C code; another one goes on after the row that ended it.
"""

import json
import os
import signal
import sys

sys.path.insert(0, sys.argv[1])
import grader
import parser as reader

LETTERS = set("ABCDE")


def judge(name, completion, example):
    _, gold = reader.parse_ground_truth(example, name)
    completion = completion.strip()
    keep_units = name in reader.STRIP_EXCEPTIONS
    given = reader.strip_string(reader.extract_answer(completion, name), skip_unit=keep_units)
    if gold in LETTERS and given not in LETTERS:
        given = reader.choice_answer_clean(completion)
    elif set(gold) <= LETTERS and not set(given) <= LETTERS:
        given = "".join(letter for letter in given if letter in LETTERS)
    return bool(grader.math_equal(given, gold))


def verdicts(rows):
    """Verdicts of the first rows, up to and with the one that comes to the limit."""
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        for row in rows:
            signal.setitimer(signal.ITIMER_PROF, 20)
            right = judge(**row)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(theirs, b"1" if right else b"0")
        os._exit(0)
    os.close(theirs)
    count = 0
    while letter := os.read(ours, 1):
        count += 1
        yield letter == b"1"
    os.close(ours)
    os.waitpid(child, 0)
    if count < len(rows):
        yield None


rows, done = [json.loads(line) for line in sys.stdin], 0
while done < len(rows):
    for verdict in verdicts(rows[done:]):
        done += 1
        print(json.dumps(verdict), flush=True)
