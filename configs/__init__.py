"""Recipes: each module has a ``get_config()``; installed as ``jaxres.configs``, and known by their names."""
