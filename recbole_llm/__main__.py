"""Run the command line: `python -m recbole_llm`."""

import sys

from .cli import main

sys.exit(main())
