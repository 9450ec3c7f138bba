"""The command `deepseek`: parses arguments, calls one function, prints what a person reads.

Importing it loads nothing heavy: each command defers its imports until it runs.
"""
