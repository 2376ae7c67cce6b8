"""Speed, memory and size, measured: what of it concerns this runtime alone. diffusers' side is the exporter's."""
