"""Pipelines inside other people's servers."""
