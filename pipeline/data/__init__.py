"""From files to a dataset that can be trained on, and a look at its rows as the trainer will see them.

`prepare.prepare` makes a dataset, `prepare.load_rows` reads a split for the trainer, `inspection.inspect` shows rows.
"""
