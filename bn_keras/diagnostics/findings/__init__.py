"""What the doctor can find in a model, a function each: `(Examination) -> findings`."""
