"""The package decides whether an answer is right: graders are the rules, and `GradingPool` runs them in processes.

No answer can hang or end the program, because a process that takes too long or crashes is replaced.
"""
