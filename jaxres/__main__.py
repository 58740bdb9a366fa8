"""`python -m jaxres` is `jaxres`."""

import sys

from jaxres.cli import main

if __name__ == '__main__':
  sys.exit(main())
