"""Pure tensors: the scorer and how it learns. Knows no Kafka, Redis, clock or file."""
