"""Answers and truth in, numbers out: scikit-learn's metrics and scipy's statistics.

shares       a share of images and its 95 % interval
exclusive    classes that exclude each other: top-1, top-5, confusion, coverage
multi_label  classes that an image may have several of: average precision, F1, exact match
calibration  whether a probability of 80 % is right 80 % of the time
comparison   two models on the same images: McNemar's test
"""
