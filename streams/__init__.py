"""Bytes to values and back: Kafka, Redis and files. Imports neither torch nor the other two packages."""
