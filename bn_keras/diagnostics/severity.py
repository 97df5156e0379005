"""Severities of a failed conformance probe, the worst first."""

WRONG_NUMBERS = "wrong numbers"  # outputs, gradients or statistics, in ordinary use
DROP_IN = "drop-in"  # right, but not the interface of Keras's layer: configs, files, masks
ROBUSTNESS = "robustness"  # empty batches, half precision, numbers far from zero, replicas
POLICY = "policy"  # a maintainer's choice: NaN in, NaN out; what is accepted, refused, warned of
SEVERITIES = (WRONG_NUMBERS, DROP_IN, ROBUSTNESS, POLICY)
