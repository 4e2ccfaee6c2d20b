"""The HTML report of a run, built from the files that the stages and the evaluation write; loads no model."""
