"""Public data sets and files of your own, turned into verl's columns: read, checked, filtered, measured, split and written.

    python -m unify_posttrain.prepare task=openr1_math                              # from the hub
    python -m unify_posttrain.prepare task=openr1_math prepare.task.source=rows.jsonl prepare.task.validation_rows=0

A task (`unify_posttrain.tasks`) says how one row of its source is read; everything else is here and the same for all. Sources pass
through in chunks of `prepare.task.chunk_rows` rows, so memory does not grow with them. Columns: see :func:`rows.schema`.

What is done about bad input. A fault of the file is an error, one line that names file, row or column and the remedy; nothing is
written. A fault of one row is a counted drop, or that error under `prepare.task.on_bad_row=error`; more than
`prepare.task.max_bad_share` of them are an error, too. A filter does what the data set's recipe asks for and is never an error.

| found                                                          | what happens              | counted as            |
|----------------------------------------------------------------|---------------------------|-----------------------|
| file or folder missing, empty, of another format; no rows      | error                     |                       |
| truncated parquet, invalid JSON (line), broken UTF-8           | error (file and line)     |                       |
| an archive; a name or link that leads out of the folder        | error                     |                       |
| column missing                                                 | error (source, column)    |                       |
| file of data in the folder that no split takes                 | error (folder, file)      |                       |
| prompt that the chat template refuses (`tokenizer`)            | error (row, remedy)       |                       |
| value of a wrong type, empty or null prompt                    | fault of the row          | `malformed`           |
| whole number of 2^53 or more stored as a float                 | fault of the row          | `malformed`           |
| messages as Python prints them                                 | fault of the row          | `malformed`           |
| nested too deeply, too long a number, a key twice (JSON)       | fault of the row          | `malformed`           |
| NUL character, half of a UTF-16 pair                           | fault of the row          | `malformed`           |
| right choice that is none of the choices                       | fault of the row          | `malformed`           |
| ground truth null, empty or NaN                                | fault of the row          | `no_ground_truth`     |
| ground truth that the grader of `gold_version` cannot parse    | fault of the row          | `gold`                |
| target null or empty (`missing_target=keep` keeps it for RL)   | fault of the row          | `empty_target`        |
| prompt that is there before in the same split (`deduplicate`)  | filter, the first is kept | `duplicate`           |
| no trace that ends (OpenR1-Math-220k)                          | filter                    | `incomplete_trace`    |
| ... or none of those that math-verify accepted                 | filter                    | `failed_verification` |
| prompt, or every target, over its limit (`too_long=drop`)      | filter, with `tokenizer`  | `too_long`            |
| images, sounds, videos beside the text                         | left out, a warning       | `media_left_out`      |
| no row left                                                    | error                     |                       |
"""
