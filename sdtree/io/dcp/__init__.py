"""Directories of torch.distributed.checkpoint, DCP for short."""
