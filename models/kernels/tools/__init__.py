"""For those who write kernels: tuning on a device or offline, and a report of what compiles."""
