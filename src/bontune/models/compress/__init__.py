"""Fewer bits and fewer weights: GPTQ and SparseGPT, weak columns that are trained (OWQ), and sparse fine-tuning.

Nothing else knows these modules: what they make is a model like any other, whose weights are what is trained and served.
"""
