"""Writing the tensors of a checkpoint, one file a rank: a storage for torch's distributed checkpoints.

torch plans who writes what, so that each value is written once, however many ranks hold it. Its own storage
would pickle the plan; ours keeps it in the manifest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from sparktrain.errors import CheckpointNotWritten, StoreFailed
from sparktrain.storage import AnyPath, write_once
from sparktrain.training.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    clear,
    commit,
    discard,
    key_in_file,
    rank_file,
)


def write_checkpoint(
    path: AnyPath,
    *,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    rank: int = 0,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint together with the other ranks, or alone without a group; all of it, or none.

    Args:
        path: a directory of its own, see `checkpoint_name`.
        tensors: by name; those that several ranks give under one name are equal, or shards of one tensor.
        state: JSON that comes back with the checkpoint; rank 0's counts.

    Raises:
        CheckpointNotWritten: a rank's storage did not take its part; raised on all ranks alike.
        Exception: any other, of whichever rank, likewise.
    """
    # torch takes one process without a group for an oversight
    warnings.filterwarnings("ignore", message="torch.distributed is .*uninitialized")
    writer = RankWriter(path, rank, step, state)
    try:
        planner = DefaultSavePlanner(flatten_state_dict=False)
        # Sorted, so that which rank writes what does not hang on what an optimizer met first.
        save(dict(sorted(tensors.items())), storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:
        discard(path / rank_file(rank))
        failures = {rank: failure for rank, (failure, _) in sorted(error.failures.items())}
        others = [failure for failure in failures.values() if not isinstance(failure, _NotWritten)]
        if others:
            raise others[0] from None
        reasons = {rank: failure.args[0] for rank, failure in failures.items()}
        is_transient = all(failure.args[1] for failure in failures.values())
        raise CheckpointNotWritten(str(path), reasons, is_transient) from None


class _NotWritten(Exception):
    """What a storage said, and whether it may well say something else later; travels to the other ranks."""


class RankWriter(StorageWriter):
    """Writes this rank's share of a save as one file, and on the first rank the manifest, after all files."""

    def __init__(self, path: AnyPath, rank: int, step: int, state: Mapping[str, Any]) -> None:
        self.path, self.rank, self.step, self.state = path, rank, step, state

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: a writer is for one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **options: Any) -> None:
        if is_coordinator:  # no rank writes before it has the plan, which comes later
            try:
                clear(self.path)  # the same step again within an attempt
            except (OSError, StoreFailed) as error:
                raise _NotWritten(
                    f"what lies there can't be deleted: {_reason(error)}", _passes(error)
                ) from None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        memory: set[int] = set()
        for item in plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor), f"{item.index.fqn} is no tensor: it belongs into the state"
            tensor = tensor.detach().cpu().contiguous()
            if tensor.untyped_storage().data_ptr() in memory:
                tensor = tensor.clone()  # tied weights share their memory, which the format refuses
            memory.add(tensor.untyped_storage().data_ptr())
            tensors[_key_of_item(item)] = tensor
        content = safetensors.torch.save(tensors)
        # Of what is meant to be written, not of what the disk makes of it.
        place = (rank_file(self.rank), hashlib.sha256(content).hexdigest())
        self._write(self.path / place[0], content)
        written: Future[list[WriteResult]] = Future()
        written.set_result([WriteResult(item.index, 0, place) for item in plan.items])
        return written

    def _write(self, file: AnyPath, content: bytes) -> None:
        try:
            write_once(file, content)
        except (OSError, StoreFailed) as error:
            reason = f"{file}: {_reason(error)} ({len(content):,} bytes were to be written"
            discard(file)
            raise _NotWritten(reason + _free(file) + ")", _passes(error)) from None

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit; called on the first rank, when all ranks have written."""
        written = [result for of_rank in results for result in of_rank]
        files = dict(result.storage_data for result in written)
        holder = {(r.index.fqn, tuple(r.index.offset or ())): r.storage_data[0] for r in written}
        tensors = {
            name: {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "shape": list(tensor.size),
                "chunks": [
                    {
                        "file": holder[name, tuple(c.offsets)],
                        "offset": list(c.offsets),
                        "shape": list(c.sizes),
                    }
                    for c in tensor.chunks
                ],
            }
            for name, tensor in metadata.state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata)
        }
        saved = Checkpoint(self.path, self.step, self.state, files, tensors)
        try:
            commit(saved)
        except (OSError, StoreFailed) as error:
            discard(self.path / MANIFEST_FILE)
            said = f"{self.path / MANIFEST_FILE}: {_reason(error)}{_free(self.path)}"
            raise _NotWritten(said, _passes(error)) from None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _key_of_item(item: WriteItem) -> str:
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    return key_in_file(item.index.fqn, list(item.tensor_data.size), list(chunk.offsets), list(chunk.sizes))


def _reason(error: OSError | StoreFailed) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _passes(error: OSError | StoreFailed) -> bool:
    """A store that is not reached is there again some day; a full disk is full for the next attempt, too."""
    return isinstance(error, StoreFailed) and error.tries != 1


def _free(path: AnyPath) -> str:
    """Say how much room there is, where that can be asked."""
    if not isinstance(path, Path):
        return ""
    existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
    return f", {shutil.disk_usage(existing).free:,} bytes are free in {existing}"
