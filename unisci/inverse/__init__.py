"""Inverse problems: measurements of clean states, and what a diffusion prior can do with them."""
