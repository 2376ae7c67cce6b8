"""One generation of diffusers in a fresh process: python -m telecine_export.bench.fresh SOURCE SETTINGS"""

from __future__ import annotations

import sys

from telecine.bench.fresh import tell

if __name__ == "__main__":
    # Nothing of the exporter is imported but this: what is measured is diffusers' own start.
    from telecine_export.bench.competitor import Diffusers, open_pipeline

    tell(
        lambda settings: Diffusers(open_pipeline(sys.argv[1]), threads=settings.threads, device=settings.device),
        sys.argv[2:],
    )
