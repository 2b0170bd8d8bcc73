"""A disk that remembers: records what a piece of code writes, and rebuilds what a crash at any moment could have left.

A file's content survives a power cut once the file was fsynced, a name once its directory was. Until then each write,
each new name and each rename may have reached the disk or not, by itself: a later one without an earlier one too.
`Recording` notes every write, fsync and rename under one directory; `after(n)` applies the first n of them to a model
of the disk, which `Disk.put` writes out again: as a killed process leaves it (nothing lost), as a power cut does
(everything unsynced lost), or any part of it lost, in any order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Functions = dict[str, Callable[..., Any]]
Keep = Callable[[], bool]
"""Whether one unsynced thing survives; asked for each write to a file, and for each change of a directory."""


@dataclass
class _Write:
    """Bytes at a place of a file, or, without any, its end there."""

    position: int
    data: bytes | None

    def apply(self, content: bytes) -> bytes:
        if self.data is None:
            return content[: self.position]
        # what was to be written before it and was not is a hole, which reads as zeros
        content = content.ljust(self.position, b"\0")
        return content[: self.position] + self.data + content[self.position + len(self.data) :]


@dataclass
class _File:
    synced: bytes = b""
    pending: list[_Write] = field(default_factory=list)

    @property
    def now(self) -> bytes:
        return self.left(lambda: True)

    def left(self, keep: Keep) -> bytes:
        content = self.synced
        for write in self.pending:
            if keep():
                content = write.apply(content)
        return content

    def fsync(self) -> None:
        self.synced, self.pending = self.now, []


@dataclass
class _Change:
    """Names that a directory gets and loses at once: a rename within it does both."""

    put: dict[str, _File | _Directory] = field(default_factory=dict)
    gone: str = ""


@dataclass
class _Directory:
    synced: dict[str, _File | _Directory] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)

    @property
    def now(self) -> dict[str, _File | _Directory]:
        return self.left(lambda: True)

    def left(self, keep: Keep) -> dict[str, _File | _Directory]:
        names = dict(self.synced)
        for change in self.pending:
            if keep():
                names.pop(change.gone, None)
                names |= change.put
        return names

    def fsync(self) -> None:
        self.synced, self.pending = self.now, []


@dataclass(frozen=True)
class Operation:
    """One call that changed the disk; paths are relative to the recorded directory."""

    kind: str
    path: str
    other: str = ""
    position: int = 0
    data: bytes = b""


class Disk:
    """A model of a directory tree, with what is synced told from what is not."""

    def __init__(self, root: Path) -> None:
        self._root = _read(root)

    def apply(self, operation: Operation) -> None:
        """Carry out one recorded operation."""
        directory, name = self._find(operation.path)
        match operation.kind:
            case "create":
                directory.pending.append(_Change({name: _File()}))
            case "truncate":
                self._file(directory, name).pending.append(_Write(operation.position, None))
            case "write":
                self._file(directory, name).pending.append(_Write(operation.position, operation.data))
            case "mkdir":
                directory.pending.append(_Change({name: _Directory()}))
            case "rename":
                target, target_name = self._find(operation.other)
                node = directory.now[name]
                if target is directory:
                    directory.pending.append(_Change({target_name: node}, gone=name))
                else:
                    target.pending.append(_Change({target_name: node}))
                    directory.pending.append(_Change(gone=name))
            case "remove":
                directory.pending.append(_Change(gone=name))
            case "fsync":
                (directory.now[name] if name else self._root).fsync()

    @staticmethod
    def _file(directory: _Directory, name: str) -> _File:
        node = directory.now[name]
        assert isinstance(node, _File)
        return node

    def put(self, target: Path, *, names: Keep, contents: Keep) -> Path:
        """Write out what is left if unsynced names and contents survive as told."""
        _write(self._root, target, names, contents)
        return target

    def image(self, *, names: Keep, contents: Keep) -> frozenset[tuple[str, bytes]]:
        """The same as a value, to tell equal remains."""
        return frozenset(_walk(self._root, "", names, contents))

    def _find(self, path: str) -> tuple[_Directory, str]:
        *parents, name = path.split("/")
        node = self._root
        for parent in parents:
            inner = node.now[parent]
            assert isinstance(inner, _Directory)
            node = inner
        return node, name


def _read(path: Path) -> _Directory:
    entries: dict[str, _File | _Directory] = {}
    for entry in path.iterdir():
        if entry.is_dir():
            entries[entry.name] = _read(entry)
        else:
            entries[entry.name] = _File(entry.read_bytes())
    return _Directory(entries)


def _write(directory: _Directory, target: Path, names: Keep, contents: Keep) -> None:
    target.mkdir()
    for name, node in directory.left(names).items():
        if isinstance(node, _Directory):
            _write(node, target / name, names, contents)
        else:
            (target / name).write_bytes(node.left(contents))


def _walk(directory: _Directory, prefix: str, names: Keep, contents: Keep) -> Iterator[tuple[str, bytes]]:
    for name, node in directory.left(names).items():
        if isinstance(node, _Directory):
            yield f"{prefix}{name}/", b""
            yield from _walk(node, f"{prefix}{name}/", names, contents)
        else:
            yield f"{prefix}{name}", node.left(contents)


class Recording:
    """What was written under `root` while `running` was; each write is recorded as two halves, so that torn ones are
    tried too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self._disk = Disk(root)
        self._paths: dict[int, str] = {}
        self._applied = 0

    def after(self, count: int) -> Disk:
        """The disk after the first `count` operations; ask with rising counts, as it is one disk that goes on."""
        for operation in self.operations[self._applied : count]:
            self._disk.apply(operation)
        self._applied = max(count, self._applied)
        return self._disk

    @contextlib.contextmanager
    def running(self) -> Iterator[Recording]:
        """Record what happens in the block. The real fsync is skipped: only its place in the order matters."""
        real = {name: getattr(os, name) for name in _REPLACED}
        for name in _REPLACED:
            setattr(os, name, self._wrapped(name, real))
        try:
            yield self
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    def _wrapped(self, name: str, real: Functions) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self, f"_{name}")(real, *args, **kwargs)

        return call

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        where = Path(f"/proc/self/fd/{dir_fd}").readlink() if dir_fd is not None else Path.cwd()
        full = where / os.fspath(path)
        if full == self.root:
            return ""
        return str(full.relative_to(self.root)) if full.is_relative_to(self.root) else None

    def _note(self, kind: str, path: str | None, **more: Any) -> None:
        if path is not None:
            self.operations.append(Operation(kind, path, **more))

    def _open(
        self,
        real: Functions,
        path: Any,
        flags: int,
        mode: int = 0o777,
        *,
        dir_fd: int | None = None,
    ) -> int:
        inside = self._inside(path, dir_fd)
        is_new = inside is not None and flags & os.O_CREAT and not (self.root / inside).exists()
        fd: int = real["open"](path, flags, mode, dir_fd=dir_fd)
        if inside is not None:
            self._paths[fd] = inside
            if is_new:
                self._note("create", inside)
            elif flags & os.O_TRUNC:
                self._note("truncate", inside)
        return fd

    def _close(self, real: Functions, fd: int) -> None:
        self._paths.pop(fd, None)
        real["close"](fd)

    def _write(self, real: Functions, fd: int, data: Any) -> int:
        position = os.lseek(fd, 0, os.SEEK_CUR) if fd in self._paths else 0
        written: int = real["write"](fd, data)
        content = bytes(data)[:written]
        half = written // 2
        self._note("write", self._paths.get(fd), position=position, data=content[:half])
        self._note("write", self._paths.get(fd), position=position + half, data=content[half:])
        return written

    def _ftruncate(self, real: Functions, fd: int, length: int) -> None:
        real["ftruncate"](fd, length)
        self._note("truncate", self._paths.get(fd), position=length)

    def _fsync(self, real: Functions, fd: int) -> None:
        self._note("fsync", self._paths.get(fd))

    def _mkdir(self, real: Functions, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real["mkdir"](path, mode, dir_fd=dir_fd)
        self._note("mkdir", self._inside(path, dir_fd))

    def _rename(self, real: Functions, source: Any, target: Any) -> None:
        real["rename"](source, target)
        self._note("rename", self._inside(source), other=self._inside(target))

    def _replace(self, real: Functions, source: Any, target: Any) -> None:
        real["replace"](source, target)
        self._note("rename", self._inside(source), other=self._inside(target))

    def _unlink(self, real: Functions, path: Any, *, dir_fd: int | None = None) -> None:
        inside = self._inside(path, dir_fd)
        real["unlink"](path, dir_fd=dir_fd)
        self._note("remove", inside)

    def _rmdir(self, real: Functions, path: Any, *, dir_fd: int | None = None) -> None:
        inside = self._inside(path, dir_fd)
        real["rmdir"](path, dir_fd=dir_fd)
        self._note("remove", inside)


_REPLACED = ("open", "close", "write", "ftruncate", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
