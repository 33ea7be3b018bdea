"""Text-to-image generators: `base` is the protocol of a family, `unet` the family of Stable
Diffusion, `load` the table of families; `lora`, `latents` and `sampling` serve all of them.
"""
