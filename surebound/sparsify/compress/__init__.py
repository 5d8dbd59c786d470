"""A smaller network with the same outputs: norms folded, constant channels removed, lines merged into layers."""
