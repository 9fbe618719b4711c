"""The `linscale` command: one file a group of commands, and the words that they share.

`main` has plan, run, status, fit and report; nothing else imports from here.
"""
