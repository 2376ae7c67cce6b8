"""The command line: parse, one library call, print. Logs go to stderr, results to stdout.

Exit codes: 0 done, 1 a telecine error or a failed check, 2 wrong usage.
"""

from __future__ import annotations

from telecine.cli import bench, build, commands, generate, plan, refit, triton, upscale
from telecine.cli.group import main

__all__ = ["bench", "build", "commands", "generate", "main", "plan", "refit", "triton", "upscale"]
