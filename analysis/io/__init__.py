"""Reading: run records, anybody's tables, evaluations, saved results.

Everything becomes tidy data frames with a reason for each row left out.
"""
