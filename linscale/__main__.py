"""The `linscale` command; also `python -m linscale`.

Where another package hides one of Linscale's, that is said before anything is imported from it.
"""

from __future__ import annotations

import sys

from linscale.installation import HiddenPackage, check_packages


def main() -> None:
    """Run the command line."""
    try:
        check_packages()
    except HiddenPackage as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    from scaling.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
