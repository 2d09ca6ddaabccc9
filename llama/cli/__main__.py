"""`python -m llama.cli`: the form in which `llama` starts its own ranks."""

import sys

from llama.cli import main

sys.exit(main())
