"""Input that nobody meant: mutated records, checkpoints, configurations and requests, each told by its number.

`python -m tests.fuzz --records 1000000 --checkpoints 100000` runs the large sizes; the tests here run small ones.
"""
