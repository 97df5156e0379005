"""The BatchNorm layer and what it stands on.

`layer` is the Keras layer; `population` owns the moving statistics; `renorm` is batch
renormalization. The arithmetic is written three times, with one contract `(outputs, mean,
variance)`: `reference` in NumPy to read and to judge by, `functional` in keras.ops for every
backend, `kernels` for TensorFlow.
"""
