"""How the shapes and dtypes in signatures are checked: see CHECKED in conftest.py."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # an int is a float
