"""FLUX: what diffusers' ``FluxTransformer2DModel`` is called with, and LoRA on it."""
