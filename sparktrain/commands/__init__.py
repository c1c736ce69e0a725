"""Commands beside the stages: `sparktrain init`, `sparktrain runs`, and what the shell completes."""
