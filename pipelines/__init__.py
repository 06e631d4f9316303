"""The stages of dvc.yaml, one verb a file, and the commands that have side effects (ingest, release, demo)."""
