"""`python -m llama`: the `llama` command, also in the form in which it starts its own ranks."""

import sys

from llama.cli import main

sys.exit(main())
