"""From any source to a dataset that can be trained on, and a look at its rows as the trainer will see them.

`request.check` refuses at once what it can; `prepare.run` is the job. On the way, from top to bottom:

- sources   `sources` (what a source names), `folders`, `llamafactory`, `hub`
- reading   `reading.Reader` (one file) over `opening`, `encodings`, `json_rows`, `tables`, `columnar`, `plain_text`;
            `blocks` is what goes to the worker processes
- layouts   `layouts.find` and `to_record` over `recognition`, `samples`, `conversion`, `turns`, `rendered`, `cells`;
            `rows.Record` is what every layout becomes
- cleaning  `processing` (one block, in `pool`'s processes) over `mending`, `conversation`, `lengths`, `privacy`,
            `placeholders`, `terms`, `overlap`; `cleaning` counts
- choosing  `staging` (all rows on disk), `near` and `selection` (which of them), `splits` (Parquet)
- report    `describe` over `statistics`, `languages`, `topics`, `advice`, `report_page`
- after     `inspection` shows rows; `authored` appends examples
"""
