"""Turn a source checkpoint into a bundle. torch lives here only."""
