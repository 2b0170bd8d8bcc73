"""The daemon: joins streams and models, and owns time, files and threads."""

import os

# Threads of torch that wait for one another must not spin: beside another busy process, two took fifteen times as long
# as one, and a fifth longer without spinning. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN keeps what it compiled for the last 1,024 shapes, and a catalogue that grows has a new one every phase: 50 MiB.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
