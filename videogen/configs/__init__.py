"""One published system is one file of plain data: ``get_config(argument)``, the names of its ``STAGES``, ``SWEEPS``.

Commands take a file by its name, ``--config=phenaki:stage=tokenizer,size=debug``, or by any path.
"""
