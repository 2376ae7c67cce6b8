"""The demo model: what it is trained on, how, and how it is scored."""
