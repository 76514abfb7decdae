"""A pytest plugin: the tests whose names contain a word of `TESTS_FIRST` run first. Of the contract, only those run."""

import os
import re

WORDS = re.compile("|".join(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])" for word in os.environ["TESTS_FIRST"].split()))


def pytest_collection_modifyitems(config, items):
    named = [item for item in items if WORDS.search(item.nodeid)]
    others = [item for item in items if not WORDS.search(item.nodeid)]
    left = [item for item in others if "test_contract.py" in item.nodeid]
    config.hook.pytest_deselected(items=left)
    items[:] = named + [item for item in others if item not in left]
