"""Precision lives in the graph: strongly typed models at fp16, bf16 and fp8 out of one trace at float32.

`policy` says what stays in higher precision and why, `convert` applies it, `quantise` adds FP8, `calibration` finds
its scales, and `gate` measures what it all costs the pictures.
"""
