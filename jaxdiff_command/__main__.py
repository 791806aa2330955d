"""`python -m jaxdiff_command`: the console script, in a source tree that is not installed."""

import sys

from jaxdiff_command import main

sys.exit(main())
