"""Makes the helpers of this folder and `mixer_contract` importable from its test modules."""

import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]
