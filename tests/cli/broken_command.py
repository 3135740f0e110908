"""A command of somebody else's, with a bug."""

crash = 1 // 0
