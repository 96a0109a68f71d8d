"""This package makes a report of runs: run folders -> plain data -> figures -> one HTML page and its Markdown twin."""
