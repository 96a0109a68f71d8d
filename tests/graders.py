"""Graders that misbehave on demand. Light to import: grading processes import this module."""

import ctypes
import os
import time
from dataclasses import dataclass
from typing import ClassVar

from aepo.grading.base import Grade, Grader


def overflow(depth=0):
    return overflow(depth + 1) + 1


@dataclass(frozen=True)
class Obedient(Grader):
    """Does what the completion says; otherwise right when it equals the answer."""

    name: ClassVar[str] = "obedient"

    def grade(self, completion, answer):
        deeds = {
            "hang": lambda: time.sleep(600),
            "spin": lambda: [None for _ in iter(int, 1)],
            "exit": lambda: os._exit(3),
            "segfault": lambda: ctypes.string_at(0),
            "memory": lambda: bytearray(2**30),
            "recursion": overflow,
            "raise": lambda: 1 / 0,
            "sleep": lambda: time.sleep(0.05),
            "nap": lambda: time.sleep(1),
        }
        if completion in deeds:
            deeds[completion]()
        return Grade(completion == answer, f"{os.getpid()}:{completion}")


@dataclass(frozen=True)
class Unready(Obedient):
    name: ClassVar[str] = "unready"

    def prepare(self):
        raise RuntimeError("no library")


@dataclass(frozen=True)
class Stillborn(Obedient):
    name: ClassVar[str] = "stillborn"

    def prepare(self):
        os._exit(7)
