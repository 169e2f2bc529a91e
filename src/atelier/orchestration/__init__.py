"""Orchestration: compile pipelines, run them here, keep the local ledger. The only room that imports KFP."""
