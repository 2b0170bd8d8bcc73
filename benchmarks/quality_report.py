"""The table of `benchmarks.quality` in lines of text and in Markdown, and its plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = {
    "recall": ("recall@20", "{:.4f}"),
    "recall_se": ("± se", "{:.4f}"),
    "ndcg": ("NDCG@20", "{:.4f}"),
    "warm_recall": ("warm recall", "{:.4f}"),
    "cold_recall": ("cold recall", "{:.4f}"),
    "cold_among_cold": ("cold among cold", "{:.4f}"),
    "rmse": ("RMSE", "{:.4f}"),
    "learn_events_per_s": ("events/s", "{:.0f}"),
    "wall_s": ("wall s", "{:.0f}"),
}
"""Key of a line → its heading and format."""
BETWEEN = ("warm_recall", "cold_recall", "cold_among_cold")
"""Keys of the columns that have intervals."""
NAME_WIDTH, WIDTH = 22, 15
SMOOTHED = 8
"""Phases whose mean is a point of the plot: single ones are noise."""
NOTES = """\
Recall and NDCG are of all ranked events: repeats are not ranked. Candidates are the items announced by then for
whoever knows contents, the items that somebody touched for the others, who could only lose by more of them.
Cold: events of items that nobody had touched; among cold, ranked among such items alone. Of ablations a quarter of the
warm events and all cold ones are ranked; recall and NDCG are those of `headwater` and the mean change on these events,
± one standard error of the change. Intervals are by the bootstrap over users. `events/s` is
learning, all of it. River learns each event, LightFM each phase; item kNN and implicit refit on all of the past every
fourth phase, `item-knn-fresh` at every event.
"""


def heading() -> str:
    """Column heads for `line`."""
    return " ".join([f"{'':{NAME_WIDTH}}", *(f"{title:>{WIDTH}}" for title, _ in COLUMNS.values())])


def line(row: dict[str, Any]) -> str:
    """One line of text."""
    if "left_out" in row:
        return f"{row['name']:{NAME_WIDTH}} left out: {row['left_out']}"
    text = " ".join([f"{row['name']:{NAME_WIDTH}}", *(f"{cell:>{WIDTH}}" for cell in _cells(row))])
    return f"{text}   warm {_change(row, 'warm')}, cold {_change(row, 'cold')}" if "warm_change" in row else text


def markdown(folder: str, about: str, rows: Sequence[dict[str, Any]]) -> str:
    """The page: a table, what is left out, and what the figures are."""
    lines = [f"# Quality on `{folder}`", "", f"{about}.", ""]
    lines.append("| | candidates | " + " | ".join(title for title, _ in COLUMNS.values()) + " |")
    lines.append("|---|---|" + "---:|" * len(COLUMNS))
    for row in rows:
        if "left_out" not in row:
            lines.append(f"| {row['name']} | {row['catalogue']} | " + " | ".join(_cells(row)) + " |")
    lines += _intervals(rows) + _changes(rows)
    missing = [f"Left out: {row['name']}, {row['left_out']}." for row in rows if "left_out" in row]
    return "\n".join([*lines, "", *missing, *([""] if missing else []), NOTES])


def _intervals(rows: Sequence[dict[str, Any]]) -> list[str]:
    # an ablation's figures are the whole's and a change, which has its standard error
    ranked = [row for row in rows if row.get("intervals") and "warm_change" not in row]
    if not ranked:
        return []
    lines = [
        "",
        "| 95 % interval of | " + " | ".join(COLUMNS[key][0] for key in BETWEEN) + " |",
        "|---|---:|---:|---:|",
    ]
    for row in ranked:
        bounds = [row["intervals"].get(key) for key in BETWEEN]
        cells = ["–" if pair is None else f"{pair[0]:.4f} to {pair[1]:.4f}" for pair in bounds]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return lines


def _changes(rows: Sequence[dict[str, Any]]) -> list[str]:
    changed = [row for row in rows if "warm_change" in row]
    if not changed:
        return []
    lines = ["", "| change of recall@20 | warm events | cold events |", "|---|---:|---:|"]
    lines += [f"| {row['name']} | {_change(row, 'warm')} | {_change(row, 'cold')} |" for row in changed]
    return lines


def _change(row: dict[str, Any], part: str) -> str:
    key = f"{part}_change"
    return f"{row[key]:+.4f} ± {row[key + '_se']:.4f}" if key in row else "–"


def _cells(row: dict[str, Any]) -> list[str]:
    return [form.format(row[key]) if row.get(key) is not None else "–" for key, (_, form) in COLUMNS.items()]


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Draws recall over phases as a PNG; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("agg")
    from matplotlib import pyplot

    styles = {"baseline": ":", "library": "--", "headwater": "-", "ablation": "-."}
    figure, axes = pyplot.subplots(figsize=(11, 6), layout="constrained")
    for row in rows:
        recall = np.array(row.get("recall_by_phase", []), float)
        if len(recall):
            ours = row["kind"] == "headwater"
            smooth = smoothed(recall, SMOOTHED)
            numbers = np.arange(len(smooth)) + 1 + (len(recall) - len(smooth)) / 2
            axes.plot(numbers, smooth, styles[row["kind"]], label=row["name"], linewidth=2.5 if ours else 1)
    axes.set(xlabel="phase", ylabel=f"recall@20, mean of {SMOOTHED} phases", ylim=(0, None))
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def smoothed(values: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Means over windows of `width` values (of all, where there are fewer), NaN left out."""
    width = min(width, len(values))
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    known = np.isfinite(windows)
    total = np.where(known, windows, 0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)
