"""The standard set behind `make bench`: each line of it, its plan and its targets.

Imports `measuring`. Start with `suite`; `scenarios` is one kind of load against one model.
"""
