"""LTX-2.0 and 2.3: video with sound."""
