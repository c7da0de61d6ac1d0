"""What holds for all tests."""

import os

# before anything loads torch, as pipeline/__init__.py does: threads of OpenMP that wait by spinning slow down whatever
# runs beside them, and tests run beside each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
