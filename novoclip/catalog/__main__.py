"""Print the tables of rules, wrappers and optimizers."""

import sys

from novoclip.catalog import table

sys.stdout.write("\n\n".join([table(), table(("wrapper",), "wrapper"), table(("optimizer",), "optimizer")]) + "\n")
