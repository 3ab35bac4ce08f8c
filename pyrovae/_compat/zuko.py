"""The one place that imports zuko, which on import switches off argument validation for the whole process, and gives
every ``Transform`` its ``call_and_ladj``.
"""

from torch.distributions import Distribution

_validate = Distribution._validate_args

import zuko.flows as flows  # noqa: E402
import zuko.transforms as transforms  # noqa: E402

Distribution.set_default_validate_args(_validate)
