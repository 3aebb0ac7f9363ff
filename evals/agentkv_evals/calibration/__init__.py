"""From what rules leave unrepaired to the error of the answer, measured on one model: `agentkv calibrate`."""
