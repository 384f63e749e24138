"""A program replayed against a denoiser: latents in slots, call by call."""
