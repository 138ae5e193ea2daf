"""Arms failpoints in every process of a torture run: this directory stands first on PYTHONPATH there.

Any other process that finds it does nothing: without the variable it ends here.
"""

import os

if "RINGLEADER_FAILPOINTS" in os.environ:
    from tests.torture.hook import install

    install(os.environ["RINGLEADER_FAILPOINTS"])
