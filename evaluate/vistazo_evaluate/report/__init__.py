"""The page of `--report`: one HTML file that opens anywhere and loads nothing.

page        what stands on it
plots       matplotlib's, as SVG, for light and for dark
thumbnails  images as a viewer shows them, small
"""
