"""This package makes a report of runs.

It reads run folders into plain data, draws figures, and writes one HTML page and a Markdown file with the same content.
"""
