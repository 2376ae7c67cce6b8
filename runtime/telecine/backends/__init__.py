"""The backends that run graphs, all behind `base.Session`."""
