"""How the demo model is asked for clips: what it was trained on, and what looks best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHECKPOINT = Path(__file__).parent / "checkpoint"
UPSCALER = CHECKPOINT / "latent_upsampler"
SETTINGS: dict[str, Any] = {
    "height": 96,
    "width": 96,
    "num_frames": 17,
    "num_inference_steps": 25,
    "guidance_scale": 5.0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}
FILE_FRAME_RATE = 12  # slower than the 25 that the model is told: seventeen frames are soon over


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as options of `telecine generate`."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
