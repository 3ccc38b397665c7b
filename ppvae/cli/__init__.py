"""The command line: flags, tables and files of experiments, and the evaluation of their runs."""
