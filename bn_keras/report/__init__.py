"""Reports: what a plan's results say, as a verdict, tables, pictures and files. No TensorFlow.

`report.make_report(plan, results)` gives a Report; `report.write(store)` makes one of a work
directory and stores it there. A new picture, table or text file is one registered function: see
`figures/`, `tables.py` and `files.py`.
"""
