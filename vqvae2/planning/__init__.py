"""What a run needs before it starts: memory, time, disk and cores of each stage; see pipelines/plan.py."""
