"""Calls as data: the result of a public function remembers its call, and each structure has one compiled program."""
