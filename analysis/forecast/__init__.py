"""Forecasts that are sealed before the run, and scored after it.

Built on `fit` and `judge`; draws nothing. `docs/forecast.md` tells what the intervals cover.
"""
