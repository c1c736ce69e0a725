"""A dataset at the end of a notebook's cell: rows in, kept, quarantined by rule, and by split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparktrain.dataset.card_html import Html, cell, percent, table

if TYPE_CHECKING:
    from sparktrain.dataset.dataset import Dataset


def dataset_in_cell(dataset: Dataset) -> Html:
    """Two tables: where the rows went, and what the dataset is."""
    manifest = dataset.manifest
    total = max(manifest.rows_in, 1)
    counts = {"rows in": manifest.rows_in}
    counts |= {f"quarantined by {rule}": count for rule, count in manifest.quarantined.items()}
    counts |= {"kept": manifest.rows_kept}
    counts |= {f"for {split}": content.rows for split, content in manifest.splits.items()}
    rows = [(what, count, percent(count / total)) for what, count in counts.items()]
    facts = {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "columns": ", ".join(column.name for column in manifest.columns),
        "path": str(dataset.path),
    }
    return cell(table(["", "rows", "of all"], rows), table(["dataset", ""], list(facts.items())))
