"""The formulas and kernels that no engine does well, one file each: NumPy reference first, device kernel beside it."""
