"""One model, or two, measured on a data set.

judge     a model's answers against what the images show
compared  a model and its baseline on the same images
outcome   all of it, and as one JSON object
"""
