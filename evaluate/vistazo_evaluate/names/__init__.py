"""What images are called → classes of the model; nothing is guessed.

matching   by label text, index, synset or a mapping file, or refused with what differs
text       which labels a name may mean
imagenet   ImageNet's 1,000 synsets, and whether a model's classes are those
mapping    mapping files: CSV, JSON, TOML
"""
