"""Pipelines: one file each, the DAG and its typed parameters, nothing else."""
