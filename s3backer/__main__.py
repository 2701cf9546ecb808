"""``python -m s3backer``."""

import sys

from s3backer.cli import main

sys.exit(main())
