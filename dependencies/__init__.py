"""What `make setup` installs, to the hash, and what is known against it. See CONTRIBUTING.md."""
