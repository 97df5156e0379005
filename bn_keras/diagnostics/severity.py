"""Severities of a failed conformance probe, the worst first."""

WRONG_NUMBERS = "wrong numbers"  # outputs, gradients or statistics, in ordinary use
DROP_IN = "drop-in"  # the interface of keras.layers.BatchNormalization: configs, files, masks
ROBUSTNESS = "robustness"  # bad batches, half precision, numbers far from zero, replicas
CONVENIENCE = "convenience"  # what is accepted, and what errors say
SEVERITIES = (WRONG_NUMBERS, DROP_IN, ROBUSTNESS, CONVENIENCE)
