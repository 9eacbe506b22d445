"""`vistazo evaluate`: how good a model's answers are on images whose labels are known.

The rooms, which import downwards only:

    cli                      the command
    report                   the page
    tables                   what is printed
    evaluation               one model, or two, measured on a data set; and that as one JSON object
    metrics                  answers and truth in, numbers out: scikit-learn's and scipy's
    answers, dataset, names  what the model said; images and their names; names → classes of the model

Nothing here is public but the command. It needs the extra `evaluate`; scikit-learn and matplotlib are
imported where they are used.
"""
