"""A JupyterLab of its own: its folder, its port, its settings; nothing of the user's is read or written."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNEL = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"


@contextlib.contextmanager
def running_lab(folder, home):
    """The address of a JupyterLab that shows `folder` and keeps its own files in `home`."""
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    names = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    env = os.environ | {f"JUPYTER_{name}": str(home / place) for name, place in names.items()}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    env |= {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(home / "ipython")}
    port = _free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--IdentityProvider.token=", "--expose-app-in-browser", f"--ServerApp.root_dir={folder}"]
    with open(home / "lab.txt", "w") as output:
        server = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: _answers(f"http://127.0.0.1:{port}/api"), "JupyterLab's answer")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _answers(address):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(address).status == 200


def wait_for(condition, what, *, seconds=60):
    """Wait until `condition()` holds; AssertionError that names `what` after that many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def open_page(browser, address, name, *, width_px=1280):
    """A notebook's page, its kernel idle, no cell run yet."""
    page = browser.new_page(viewport={"width": width_px, "height": 1000})
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_function(f"() => window.jupyterapp && {KERNEL}?.status === 'idle'", timeout=60_000)
    return page
