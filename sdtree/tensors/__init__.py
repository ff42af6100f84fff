"""Bare tensors: storage, bits, devices, new ones for old. No leaf is in sight."""
