"""Parts of `experiments/linearize_gemma.py`."""
