"""Run folders -> plain data -> figures -> one HTML page and its Markdown twin."""
