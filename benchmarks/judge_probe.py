"""Run the contender under a prequential judge and print its figures as one JSON line.

    python -m benchmarks.judge_probe JUDGE.py FOLDER [--limit N] [--set train.batch=512 model.head=mlp …]

`JUDGE.py` has `Stream(path, limit)` and `evaluate(stream, make, phases=…, catalogue=…)`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from typing import Any

from benchmarks.contender import Contender, make
from service.config import Config


def parse(settings: list[str]) -> Config:
    """`train.batch=512`, `model.head=mlp`, `seed=1`: keys of the configuration, values in JSON or else text."""
    tables: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        table, _, key = name.rpartition(".")
        target = tables.setdefault(table, {}) if table else tables
        try:
            target[key] = json.loads(text)
        except json.JSONDecodeError:
            target[key] = text
    return Config(**tables)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judge")
    parser.add_argument("folder")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--phases", type=int, default=160)
    parser.add_argument("--catalogue", default="announced")
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("judge", args.judge)
    if spec is None or spec.loader is None:
        sys.exit(f"No judge at {args.judge}.")
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    config = parse(args.set)
    built: list[Contender] = []

    def build(past: Any) -> Contender:
        built.append(make(past, config))
        return built[-1]

    started, processor = time.perf_counter(), time.process_time()
    result = judge.evaluate(judge.Stream(args.folder, args.limit), build, phases=args.phases, catalogue=args.catalogue)
    result |= {"wall_s": time.perf_counter() - started, "processor_s": time.process_time() - processor}
    result["refused"] = len(built[-1].refused)
    scales = built[-1].trainer.learner.calibration.scales
    result["scales"] = [round(scale, 3) for scale in scales.tolist()]
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main()
