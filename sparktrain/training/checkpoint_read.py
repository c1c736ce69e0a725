"""Reading tensors of a checkpoint, at any number of ranks: a storage for torch's distributed checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from sparktrain.errors import CheckpointInvalid
from sparktrain.training.checkpoint import Checkpoint, key_in_file, read_rank_file


def read_tensors(saved: Checkpoint, into: Mapping[str, Tensor]) -> None:
    """Fill tensors in place with what was saved under their names, wherever it lies; each rank for itself.

    Raises:
        CheckpointInvalid: a file is damaged, a name is missing, or its shape is another.
    """
    for name, tensor in into.items():
        found = saved.tensors.get(name)
        if found is None or found["shape"] != list(tensor.shape):
            has = f"{name} with shape {found['shape']}" if found else f"no {name}"
            raise CheckpointInvalid(str(saved.path), f"it has {has}; wanted is shape {list(tensor.shape)}")
    reader, planner = CheckpointReader(saved), DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(into), reader.read_metadata(), is_coordinator=True)
    # Not by torch's own `load`, which is a collective call: a rank reads what it needs, and nobody waits.
    [plan] = planner.create_global_plan([planner.create_local_plan()])
    reader.read_data(planner.finish_plan(plan), planner).wait()


def empty_tensors(saved: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """Return memory for the tensors whose names begin with `prefix`, by name."""
    return {
        name: torch.empty(found["shape"], dtype=getattr(torch, found["dtype"]))
        for name, found in saved.tensors.items()
        if name.startswith(prefix)
    }


class CheckpointReader(StorageReader):
    """Reads tensors of a checkpoint, each file whole and only if it is what was saved."""

    def __init__(self, saved: Checkpoint) -> None:
        self.saved = saved

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: a reader is for one checkpoint."""

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=getattr(torch, tensor["dtype"])),
                    torch.Size(tensor["shape"]),
                    [
                        ChunkStorageMetadata(torch.Size(chunk["offset"]), torch.Size(chunk["shape"]))
                        for chunk in tensor["chunks"]
                    ],
                )
                for name, tensor in self.saved.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **options: Any
    ) -> None:
        """Nothing to do: the manifest is all there is to know."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[tuple[str, ReadItem]]] = {}
        for item in plan.items:
            file, key = self._find(item)
            by_file.setdefault(file, []).append((key, item))
        for file, wanted in by_file.items():
            content = safetensors.torch.load(read_rank_file(self.saved, file))
            for key, item in wanted:
                part = [slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True)]
                target = planner.resolve_tensor(item).detach()
                target.copy_(content[key][tuple(part)])
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _find(self, item: ReadItem) -> tuple[str, str]:
        """Return the file that holds what an item asks for, and its key in there."""
        name, offset = item.storage_index.fqn, list(item.storage_index.offset or ())
        tensor = self.saved.tensors[name]
        [chunk] = [chunk for chunk in tensor["chunks"] if chunk["offset"] == offset]
        return chunk["file"], key_in_file(name, tensor["shape"], offset, chunk["shape"])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True
