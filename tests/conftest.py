"""What holds for all tests."""

import os
import signal

# before anything loads torch, as pipeline/__init__.py does: threads of OpenMP that wait by spinning slow down whatever
# runs beside them, and tests run beside each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# a shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
