"""A new pipeline from data that nobody prepared for: features guessed, files written, ready to run."""

from sparktrain.new_pipeline.create import Created, init_pipeline

__all__ = ["Created", "init_pipeline"]
