"""How many records a second `KafkaSource.poll` returns, beside the Kafka client alone.

python -m benchmarks.poll                                   the embedded broker
python -m benchmarks.poll --bootstrap-servers HOST:PORT     a broker of yours; makes one topic and leaves it there
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kafka import KafkaConsumer
from kafka import TopicPartition as ClientPartition

from streams.embedded import EmbeddedBroker
from streams.kafka_producer import EventProducer
from streams.kafka_source import KafkaSource


@contextlib.contextmanager
def broker(address: str | None) -> Iterator[str]:
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory() as directory, EmbeddedBroker(directory=Path(directory)) as embedded:
        yield embedded.address


def fill(address: str, topic: str, *, records: int, partitions: int, value_bytes: int, codec: str | None) -> float:
    """Send the records; returns how many a second."""
    value = json.dumps({"user_id": "u", "item_id": "i", "action": "view", "pad": ""}).encode()
    value += b" " * max(0, value_bytes - len(value))
    with EventProducer(bootstrap_servers=address, compression=codec, timeout_s=120) as producer:
        producer.ensure_topics([topic], partitions=partitions)
        start = time.perf_counter()
        for number in range(records):
            producer.send(topic, b"u%d" % number, value)
        producer.flush()
        return records / (time.perf_counter() - start)


def poll_source(address: str, topic: str, records: int) -> tuple[float, float]:
    """Read them all through `KafkaSource`; returns records a second, and a second of CPU time, without connecting."""
    source = KafkaSource(bootstrap_servers=address, topics=[topic])
    source.assign(source.beginning())
    start, cpu, seen = time.perf_counter(), time.process_time(), 0
    while seen < records:
        seen += len(source.poll(1.0))
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    source.close()
    return records / took, records / cpu


def poll_client(address: str, topic: str, records: int) -> tuple[float, float]:
    """Read them all with the client alone, as it comes: the yardstick."""
    consumer = KafkaConsumer(bootstrap_servers=address, enable_auto_commit=False, auto_offset_reset="earliest")
    consumer.assign([ClientPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))])
    start, cpu, seen = time.perf_counter(), time.process_time(), 0
    while seen < records:
        seen += sum(map(len, consumer.poll(1000).values()))
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    consumer.close()
    return records / took, records / cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap-servers")
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--value-bytes", type=int, default=160)
    parser.add_argument("--codec", choices=["none", "gzip", "snappy", "lz4", "zstd"], default="lz4")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    topic = f"poll-benchmark-{time.time_ns()}"
    codec = None if args.codec == "none" else args.codec
    with broker(args.bootstrap_servers) as address:
        sent = fill(
            address,
            topic,
            records=args.records,
            partitions=args.partitions,
            value_bytes=args.value_bytes,
            codec=codec,
        )
        print(f"{args.records:,} records of {args.value_bytes} bytes, {args.partitions} partitions, codec {args.codec}")
        print(f"send          {sent:>10,.0f} records/s")
        for name, read in (("poll", poll_source), ("client alone", poll_client)):
            rounds = [read(address, topic, args.records) for _ in range(args.rounds)]
            best, per_cpu = max(wall for wall, _ in rounds), max(cpu for _, cpu in rounds)
            print(f"{name:12}  {best:>10,.0f} records/s    {per_cpu:>10,.0f} a second of this process's CPU time")


if __name__ == "__main__":
    main()
