"""What an offline run has recorded for W&B: the file that `wandb sync` sends."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger


@dataclass(frozen=True)
class OfflineRun:
    """What W&B would be sent."""

    files: Path
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    #: By name and kind, the metadata of each artifact.
    artifacts: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def values(self, name: str) -> list[tuple[int, Any]]:
        """The optimizer step and the value of each record of a name."""
        return [(row["trainer/global_step"], row[name]) for row in self.history if name in row]

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of the only table of a name."""
        [path] = [row[f"{name}.path"] for row in self.history if f"{name}.path" in row]
        content = json.loads((self.files / path).read_text())
        return [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]

    def picture(self, name: str) -> bytes:
        """The only picture of a name."""
        [[path]] = [row[f"{name}.filenames"] for row in self.history if f"{name}.filenames" in row]
        return (self.files / path).read_bytes()


def records(file: Path) -> Iterator[bytes]:
    """The records of a `.wandb` file: W&B's 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    content, position, whole = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:  # too small for a header: padding
            position += left
            continue
        _, length, part = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # the whole record, or its last part
            yield whole
            whole = b""


class KeyLogger(DummyLogger):
    """Stands for loggers that are given a key."""

    def __init__(self, credentials: str) -> None:
        super().__init__()
        self.credentials = credentials


def read_offline_run(folder: Path) -> OfflineRun:
    """The only run below a folder, once W&B's own process has written the end of it."""
    from wandb.proto import wandb_internal_pb2

    [file] = folder.rglob("*.wandb")
    found: list[Any] = []
    for _ in range(300):
        found = [wandb_internal_pb2.Record.FromString(data) for data in records(file)]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        time.sleep(0.1)
    run = OfflineRun(file.parent / "files")
    for record in found:
        kind = record.WhichOneof("record_type")
        updates = record.config.update if kind == "config" else record.run.config.update if kind == "run" else ()
        for item in updates:
            run.config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        if kind == "history":
            items = record.history.item
            run.history.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
        artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
        if artifact.name:
            run.artifacts[artifact.name, artifact.type] = json.loads(artifact.metadata or "{}")
    return run
