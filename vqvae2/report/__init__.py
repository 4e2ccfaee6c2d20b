"""The page of a run: reads the files that stages and evaluation leave, and knows no model."""
