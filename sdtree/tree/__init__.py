"""Containers, paths and specs: how trees come apart and together."""
