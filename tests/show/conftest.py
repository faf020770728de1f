"""What an upload button holds."""

import datetime

import pytest


@pytest.fixture
def upload():
    """`upload(content)` → the value of ipywidgets' FileUpload after someone chose a file of these bytes."""

    def make(content):
        when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        file = {"name": "mine.png", "type": "image/png", "size": len(content), "content": memoryview(content)}
        return (file | {"last_modified": when},)

    return make
