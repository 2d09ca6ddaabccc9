"""`python -m llama.cli`: the same as `python -m llama`."""

import sys

from llama.cli import main

sys.exit(main())
