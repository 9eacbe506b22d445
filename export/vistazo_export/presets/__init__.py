"""How an image becomes a network's input, as a description that needs no network.

It comes from the manifest, torchvision's transforms, timm's configuration, the Hugging Face hub's
preprocessor_config.json, or a file of the user's. Imports torch, and of ours `errors`. Start with `preset`,
the description; `preprocess` reads what a user says of it.
"""
