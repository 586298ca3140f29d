"""Forecasts of time series by diffusion over windows: the past, gaps and any other known entries are prompts."""
