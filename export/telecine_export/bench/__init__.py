"""diffusers' side of `telecine bench`: the same generation in torch, eager or compiled."""
