"""Fits work in temporary files, and leave those of one that fails for people to read."""

from __future__ import annotations

from tests.fixtures.temporary import temporary_files

__all__ = ["temporary_files"]
