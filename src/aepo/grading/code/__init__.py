"""The package judges programs: it runs a candidate in a sandbox and compares what comes out in this process.

The candidate gets arguments and standard input. Expected values stay outside, so no program can read or forge them.
"""
