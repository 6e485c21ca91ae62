"""A server of S3 on this machine, in a process of its own: the tests speak to it as to any object store.

It is moto's, which keeps objects in memory, checks signatures and rights, and knows conditional writes. As in S3,
requests on an object do not interleave.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ALL_RIGHTS = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
N_SETUP_REQUESTS = 3  # of `_make_user`; every one after that is checked


class Server(NamedTuple):
    """A running server.

    Attributes
    ----------
    process : subprocess.Popen
        It.
    environment : dict of str
        Variables by which this process, and those that it starts, find the server, and nothing else.
    log : Path
        One line for each request that it answered.
    """

    process: subprocess.Popen[str]
    environment: dict[str, str]
    log: Path

    def requests(self) -> list[str]:
        """Return method, path and status of all requests so far."""
        return self.log.read_text().splitlines()


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """Start a server on a free port of the loopback interface, and end it."""
    log = folder / "requests.log"
    command = [sys.executable, "-W", "ignore", __file__, str(log)]
    strict = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(N_SETUP_REQUESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=strict) as process:
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert url, "the server did not start"
            key_id, secret = _make_user(url)
            environment = {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": key_id,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
            }
            yield Server(process, environment, log)
        finally:
            process.kill()


def _make_user(url: str) -> tuple[str, str]:
    """Make a user who may do anything with objects; return the key and its secret."""
    import boto3

    iam = boto3.client("iam", "us-east-1", endpoint_url=url, aws_access_key_id="-", aws_secret_access_key="-")
    iam.create_user(UserName="distmf")
    iam.put_user_policy(UserName="distmf", PolicyName="all", PolicyDocument=json.dumps(ALL_RIGHTS))
    key = iam.create_access_key(UserName="distmf")["AccessKey"]
    iam.close()
    return key["AccessKeyId"], key["SecretAccessKey"]


def _serve(log: str) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    app, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serialised(environ: Any, start_response: Any) -> Iterable[bytes]:
        with one_at_a_time:
            return list(app(environ, start_response))

    with Path(log).open("w", buffering=1) as lines:

        class Handler(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                lines.write(f"{self.command} {self.path} {int(code)}\n")

        server = make_server("127.0.0.1", 0, serialised, threaded=True, request_handler=Handler)
        print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
        server.serve_forever()


if __name__ == "__main__":
    _serve(sys.argv[1])
