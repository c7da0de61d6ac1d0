"""The ProtoMask library: everything the DVC stages are made of."""

import os

# Threads of a CPU network that wait for each other sleep instead of spinning: on a machine that does anything else at
# the same time, spinning makes a convolution several times slower (benchmarks/cpu_settings.py measures it). OpenMP
# reads this once, when torch is loaded, so it stands before every import of torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A matrix product on CUDA gives the same bits every time only with a workspace of fixed size; read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
