"""Runs an experiment on a cluster; the only importer of Ray."""
