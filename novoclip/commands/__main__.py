"""Run the command `novoclip` as `python -m novoclip.commands`."""

import sys

from novoclip.commands.main import main

sys.exit(main())
