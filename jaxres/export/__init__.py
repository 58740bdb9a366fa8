"""Bundles: a trained network in the formats that others run, with all that is needed to answer as it does here."""
