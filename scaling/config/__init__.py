"""What a run is: `RunConfig`, its parts, typed overrides, experiment files, schedules.

Free of torch: everything here is plain data that a plan can read in no time.
"""
