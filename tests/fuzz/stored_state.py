"""A small state directory as a daemon leaves it, its files as bytes, and how each of them is made to look whole."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from models.event_log import ROW
from service.config import Config
from service.replay import replay
from service.segments import _CONTINUES, _DIGEST_BYTES, _HEADER_BYTES
from service.tombstones import Tombstone, Tombstones
from tests.fuzz.mutations import mutated_bytes, mutated_value, odd_value
from tests.fuzz.odd_tensors import odd_content

Files = dict[str, bytes]
"""Path below the state directory → content."""
START = 1_700_000_000.0


def config_for(state_dir: Path) -> Config:
    """The smallest model that has everything: a modality, user features, replay, the judge's windows."""
    return Config.model_validate(
        {
            "namespace": "fuzz",
            "state_dir": state_dir,
            "model": {"dim": 2, "history": 2, "modalities": {"image": 2}, "user_features": {"taste": 2}},
            "train": {"threads": 1, "batch": 16, "replay_ratio": 1.0},
            "kafka": {"users_topic": "users"},
            "phase": {"max_events": 20},
            "evaluate": {"max_per_phase": 4},
            "promotion": {"tolerance": 0.99, "min_events": 10**6},
            "publish": {"buckets": 4},
        }
    )


def small_state(directory: Path, *, phases: int = 2) -> Files:
    """The files of a state directory with `phases` versions, each learned in its own phase by `replay`."""
    directory.mkdir(parents=True, exist_ok=True)
    config, chance = config_for(directory / "state"), random.Random(5)
    lines: list[dict[str, Any]] = [
        {"item_id": f"i{n}", "time": START, "features": {"image": [chance.random(), 1.0]}, "attributes": {"n": n}}
        for n in range(5)
    ]
    lines += [{"user_id": f"u{n}", "time": START, "features": {"taste": [chance.random(), 0.0]}} for n in range(4)]
    for n in range(20 * phases):
        who = {"user_id": f"u{chance.randrange(4)}", "item_id": f"i{chance.randrange(5)}", "event_id": f"e{n}"}
        lines.append(who | {"action": "rate", "value": float(n % 5), "time": START + 1 + n})
    events = directory / "events.jsonl"
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(config, [events]) == 0
    stones = Tombstones(config.state_dir / "tombstones.jsonl")
    stones.add([Tombstone(kind="users", id="u3", time=START, topic="users", partition=0, offset=9)])
    root = config.state_dir
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def versions_in(files: Files) -> list[int]:
    """Version numbers, oldest first."""
    return sorted(int(match[1]) for name in files if (match := re.fullmatch(r"checkpoints/v(\d+)/manifest.json", name)))


# -- damage


def damaged(files: Files, name: str, chance: random.Random) -> bytes:
    """The content of one file, damaged in a way that its format makes interesting."""
    data = files[name]
    if name.endswith("weights.pt"):
        return _damaged_weights(data, chance)
    if name.endswith(".seg") and chance.random() < 0.8:
        return _damaged_segment(data, name, chance)
    if name.endswith(".json") and chance.random() < 0.7:
        value = mutated_value(_unsealed(data), chance, odd_value)
        return json.dumps(value, indent=2).encode()
    if name.endswith(".jsonl") and chance.random() < 0.7:
        lines = [json.loads(line) for line in data.splitlines()]
        changed = mutated_value(lines, chance, odd_value)
        return b"".join(
            json.dumps(line).encode() + b"\n" for line in (changed if isinstance(changed, list) else [changed])
        )
    if "/" not in name and chance.random() < 0.5:
        return str(chance.choice(("", -1, 0, 1, 7, 2**62, 2**70, "1.5", "x", "\u0664"))).encode()
    return mutated_bytes(data, chance)


def _damaged_weights(data: bytes, chance: random.Random) -> bytes:
    way = chance.random()
    if way < 0.35:  # another state, written as torch writes one
        try:
            return _saved(mutated_value(_state_in(data), chance, odd_content))
        except RecursionError:  # nested too deeply to be written
            return mutated_bytes(data, chance)
    if way < 0.55:  # the program that builds the state, in a whole archive
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        pickled = next(name for name in parts if name.endswith("data.pkl"))
        chosen = pickled if chance.random() < 0.8 else chance.choice(list(parts))
        parts[chosen] = mutated_bytes(parts[chosen], chance)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for name, part in parts.items():
                archive.writestr(name, part)
        return out.getvalue()
    return mutated_bytes(data, chance)


@functools.cache
def _state_in(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _saved(state: Any) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def _damaged_segment(data: bytes, name: str, chance: random.Random) -> bytes:
    """One of its payloads changed; `made_right` chains the digests anew."""
    payloads = frames_of(data)
    at = chance.randrange(len(payloads))
    payload = payloads[at]
    if name.endswith("events.seg") and chance.random() < 0.6:
        row = chance.randrange(len(payload) // ROW.itemsize) * ROW.itemsize
        part = mutated_bytes(payload[row : row + ROW.itemsize], chance)
        payloads[at] = payload[:row] + part[: ROW.itemsize].ljust(ROW.itemsize, b"\0") + payload[row + ROW.itemsize :]
    elif name.endswith(("vocabulary.seg", "contents.seg", "profiles.seg")) and chance.random() < 0.7:
        messages = []
        while payload:
            length = int.from_bytes(payload[:4], "little")
            messages.append(msgspec.msgpack.decode(payload[4 : 4 + length]))
            payload = payload[4 + length :]
        raw, changed = b"", mutated_value(messages, chance, odd_value)
        for message in changed if isinstance(changed, list) else [changed]:
            try:
                body = msgspec.msgpack.encode(message)
            except (OverflowError, RecursionError, UnicodeEncodeError):
                body = b"\xc1"
            raw += len(body).to_bytes(4, "little") + body
        payloads[at] = raw
    else:
        payloads[at] = mutated_bytes(payload, chance)
    return b"".join(len(one).to_bytes(4, "little") + one + bytes(_DIGEST_BYTES) for one in payloads)


# -- digests made right


def made_right(files: Files, changed: str) -> Files:
    """The files with every digest that covers `changed` computed anew, as somebody would who wants it read."""
    files = dict(files)
    if changed.endswith(".seg"):
        files[changed] = _chained(files[changed])
    if changed.endswith(".json"):
        files[changed] = _resealed(files[changed])
    elif changed.endswith(".jsonl"):
        files[changed] = b"".join(_checked_line(line) for line in files[changed].splitlines())
    elif changed in ("LATEST", "CHAMPION", "NEXT"):
        digits = files[changed].split(b" ")[0].strip()
        files[changed] = digits + b" " + hashlib.sha256(digits).hexdigest()[:16].encode() + b"\n"
    if changed.endswith((".seg", "weights.pt")):
        for name in [name for name in files if name.endswith("manifest.json")]:
            manifest = _unsealed(files[name])
            if changed.endswith(".seg"):
                segment = Path(changed).stem
                told = manifest["segments"]["committed"].get(segment)
                if told is not None:
                    # an older version keeps its share of the frames, as far as there are so many
                    share = frames_of(files[changed])
                    if name != _newest_manifest(files):
                        share = share[: told["frames"]]
                    chained = _chained(_framed(share))
                    digest = chained[-_DIGEST_BYTES:].hex() if share else "0" * 64
                    told |= {"length": len(chained), "frames": len(share), "digest": digest}
            elif Path(name).parent == Path(changed).parent:
                data = files[changed]
                manifest["files"]["weights.pt"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            files[name] = _resealed(json.dumps(manifest, indent=2).encode())
    return files


def frames_of(data: bytes) -> list[bytes]:
    """The payloads of a segment's frames, without a look at their digests; whatever is left over is one more."""
    payloads, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + _HEADER_BYTES], "little") & ~_CONTINUES
        payloads.append(data[at + _HEADER_BYTES : at + _HEADER_BYTES + length])
        at += _HEADER_BYTES + length + _DIGEST_BYTES
    return payloads


def _framed(payloads: Sequence[bytes]) -> bytes:
    return b"".join(len(one).to_bytes(_HEADER_BYTES, "little") + one + bytes(_DIGEST_BYTES) for one in payloads)


def _chained(data: bytes) -> bytes:
    out, digest = b"", bytes(_DIGEST_BYTES)
    for payload in frames_of(data):
        header = len(payload).to_bytes(_HEADER_BYTES, "little")
        digest = hashlib.sha256(digest + header + payload).digest()
        out += header + payload + digest
    return out


def _newest_manifest(files: Files) -> str:
    return f"checkpoints/v{versions_in(files)[-1]:06d}/manifest.json"


def _unsealed(data: bytes) -> Any:
    value = json.loads(data)
    value.pop("digest")
    return value


def _resealed(data: bytes) -> bytes:
    """The file `seal` would have written, of whatever the JSON before the digest has become."""
    at = data.rfind(b'\n  "digest": "')
    body = data[:at].removesuffix(b",") if at >= 0 else data.rstrip().removesuffix(b"}").rstrip()
    return body + b',\n  "digest": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def _checked_line(line: bytes) -> bytes:
    body = re.sub(rb',\s*"check":\s*"[0-9a-f]*"\}$', b"}", line)
    return body[:-1] + b',"check":"%08x"}\n' % zlib.crc32(body)
