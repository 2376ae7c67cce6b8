"""Checkpoints that are read one tensor at a time: files of several formats, and views that rename, dequantise, fuse."""
