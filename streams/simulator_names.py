"""Names of simulated items, so that a person can read what a lookup says."""

from __future__ import annotations

from collections.abc import Sequence

_NOUNS: dict[str, tuple[str, ...]] = {
    "kitchen": ("Kettle", "Skillet", "Teapot", "Ladle", "Mixing Bowl"),
    "garden": ("Trowel", "Planter", "Lantern", "Watering Can", "Bench"),
    "music": ("Ukulele", "Metronome", "Turntable", "Harmonica", "Drum"),
    "travel": ("Suitcase", "Day Pack", "Atlas", "Travel Pillow", "Flask"),
    "books": ("Novel", "Cookbook", "Field Guide", "Memoir", "Anthology"),
    "toys": ("Kite", "Puzzle", "Train Set", "Marble Run", "Puppet"),
    "sports": ("Racket", "Yoga Mat", "Climbing Rope", "Helmet", "Kettlebell"),
    "fashion": ("Scarf", "Raincoat", "Loafers", "Cardigan", "Satchel"),
    "lighting": ("Desk Lamp", "Chandelier", "Candle", "Night Light", "Sconce"),
    "office": ("Notebook", "Fountain Pen", "Stapler", "Desk Tray", "Globe"),
    "outdoor": ("Tent", "Camp Stove", "Hammock", "Compass", "Sleeping Bag"),
    "crafts": ("Loom", "Sketchbook", "Pottery Kit", "Knitting Set", "Easel"),
}
_STYLES = ("Amber", "Birch", "Cobalt", "Copper", "Crimson", "Ivory", "Jade", "Linen", "Maple", "Midnight")
_COLOURS = ("Nordic", "Olive", "Pearl", "Quiet", "Rustic", "Saffron", "Slate", "Tiny", "Velvet", "Walnut")

CATEGORIES: tuple[str, ...] = tuple(_NOUNS)


def title(category: int, draw: Sequence[int]) -> str:
    """A title such as `Jade Kettle 576` for an item of the category with this number, from three random integers."""
    nouns, styles = _NOUNS[CATEGORIES[category]], _STYLES + _COLOURS
    return f"{styles[draw[0] % len(styles)]} {nouns[draw[1] % len(nouns)]} {draw[2] % 900 + 100}"
