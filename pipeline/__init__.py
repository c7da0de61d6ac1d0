"""The ProtoMask library: everything the DVC stages are made of."""
