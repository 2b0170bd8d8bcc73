"""Run the contender under a prequential judge: python -m benchmarks.judge_probe JUDGE.py FOLDER [--limit N] [--set train.batch=512 …]."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.contender import Contender, ContenderConfig, make
from models.spec import ModelSpec, TrainSpec


def parse(settings: list[str]) -> ContenderConfig:
    """`train.batch=512`, `model.dim=32`, `gate=false`: values in JSON, else text."""
    groups: dict[str, dict[str, Any]] = {"model": {}, "train": {}, "": {}}
    for setting in settings:
        name, _, text = setting.partition("=")
        group, _, key = name.rpartition(".")
        try:
            groups[group][key] = json.loads(text)
        except json.JSONDecodeError:
            groups[group][key] = text
    config = ContenderConfig(**groups[""])
    return replace(config, model=ModelSpec(**groups["model"]), train=TrainSpec(**groups["train"]))


def main() -> None:
    """Print the judge's figures as one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("judge")
    parser.add_argument("folder")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--phases", type=int, default=160)
    parser.add_argument("--catalogue", default="announced")
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
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

    started = time.perf_counter()
    result = judge.evaluate(judge.Stream(args.folder, args.limit), build, phases=args.phases, catalogue=args.catalogue)
    result["refused"] = built[-1].refused
    result["wall_s"] = time.perf_counter() - started
    result["scales"] = [round(x, 3) for x in built[-1].learner.calibration.scales.tolist()]
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
