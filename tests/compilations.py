"""How many programs the contract of Adam compiles in a process of its own: `python -m tests.compilations`."""

import sys

import jax
import jax.monitoring

import novoclip
from novoclip.testing import check_contract

COMPILED = "/jax/core/compile/backend_compile_duration"


def main():
    events = []
    # Of programs from the cache on disk, too.
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
    check_contract(novoclip.adam(0.1))
    sys.stdout.write(f"compiled {events.count(COMPILED)}\n")


if __name__ == "__main__":
    main()
