"""vistazo.v1.ClassificationService, the API for people: decode, call the classifier, encode.

Start with `service`.
"""
