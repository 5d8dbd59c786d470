"""The parts of `surebound.graph.torch_export.trace`: export, mapping by rules, comparison with the module."""
