"""The Triton kernels, each beside the formula of its name one level up: what a GPU runs, and what is compiled for one.

Importing triton takes most of a second, and the formulas are imported by everything: hence a package of its own. Each
module has the kernel, a launcher for torch tensors that refuses what it does not support and never falls back, and
`variants(capability)`, what is compiled ahead of time.
"""
