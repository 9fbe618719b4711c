"""Run records or any CSV to laws, intervals, comparisons and figures. Needs no torch."""
