"""Train and evaluate a ResNet: `jaxres train` from a checkout.

python main.py --config configs/digits.py --workdir runs/digits

Any field of the config is overridden as --config.section.field=value; the same command again continues the run. With
--seeds 5 it trains five times, and says the mean and the spread of every metric.

Several processes, on one machine or on many, train together: started by srun, mpirun or a Job of Kubernetes, or each
told of the others as --coordinator=HOST:PORT --num_processes=N --process_id=I; see docs/distributed.md.
"""

import sys

from jaxres import cli
from jaxres.runtime import outputs

if __name__ == '__main__':
  outputs.guard(needed=False)
  sys.exit(cli.main(['train', *sys.argv[1:]]))
